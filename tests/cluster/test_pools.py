"""Which worker pools fit, and what a refusal says."""

import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ablate.ray import ablate_pool
from orchestrator.cluster.autoscaler import head_config, worker_limits
from orchestrator.cluster.placement import (
    Node,
    Pool,
    capture_pool,
    check_pools,
    cluster_address,
    local_node,
    reader_pool,
)
from orchestrator.cluster.session import Cluster
from orchestrator.config import FinetuneConfig, HowConfig, RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ResourceError
from orchestrator.finetune.ray.trials import trial_pool
from orchestrator.study.plan import make_plan

LAPTOP = (Node(4),)
GPU_NODE = Node(8, 2)


def test_two_full_size_actors_on_two_cpus_are_refused_because_nothing_could_read():
    with pytest.raises(ResourceError, match=r"wait for ever on image loading.*how\.n_actors"):
        check_pools([Node(2)], [Pool("capture actors", 2, 1), reader_pool()])


def test_defaults_fit_the_smallest_local_session():
    check_pools(LAPTOP, [capture_pool(HowConfig(), LAPTOP), reader_pool()])
    assert local_node().cpus >= 4


def test_an_actor_larger_than_any_node_is_refused_although_the_total_suffices():
    with pytest.raises(ResourceError, match="do not fit the nodes"):
        check_pools([Node(8, 1), Node(8, 1)], [Pool("capture actors", 1, 1, 2)])


def test_by_default_every_gpu_gets_one_actor():
    pool = capture_pool(HowConfig(), [Node(4), GPU_NODE, GPU_NODE])
    assert (pool.n, pool.gpus) == (4, 1)


def test_fractional_gpus_give_several_actors_a_gpu():
    how = HowConfig(gpus_per_actor=0.5)
    pool = capture_pool(how, [GPU_NODE])
    assert pool.n == 4
    check_pools([GPU_NODE], [pool, reader_pool()])


def test_a_part_of_a_gpu_never_spans_two_of_them():
    """Ray places four actors of 0.4 on two GPUs; a fifth would wait for ever, although 2.0 GPUs hold 5 x 0.4."""
    assert capture_pool(HowConfig(gpus_per_actor=0.4), [GPU_NODE]).n == 4
    check_pools([GPU_NODE], [Pool("actors", 4, 1, 0.4)])
    with pytest.raises(ResourceError, match="wait for ever"):
        check_pools([GPU_NODE], [Pool("actors", 5, 1, 0.4)])
    with pytest.raises(ResourceError, match="whole ones"):
        check_pools([GPU_NODE], [Pool("actors", 1, 1, 1.5)])


def test_large_actors_are_counted_node_by_node():
    nodes = [Node(8, 3), Node(8, 3)]
    pool = capture_pool(HowConfig(gpus_per_actor=2), nodes)
    assert pool.n == 2
    check_pools(nodes, [pool])


def test_a_plan_refuses_trials_that_would_wait_for_ever_and_asks_nothing_of_stages_that_do_not_run(monkeypatch):
    monkeypatch.setattr("orchestrator.study.resources.local_node", lambda: Node(4))
    study = {"name": "t", "stages": ["finetune"], "axes": {"finetune.seed": [0, 1]}}
    two = make_sweep(study, ["how.n_actors=500", "how.concurrent_trials=2"])
    assert "2 x fine-tuning trials" in make_plan(two).pools
    with pytest.raises(ResourceError, match=r"fine-tuning trials.*gpus_per_trial"):
        make_plan(make_sweep(study, ["how.gpus_per_trial=1"]))
    with pytest.raises(ResourceError, match="capture actors"):
        make_plan(make_sweep({**study, "stages": ["capture"]}, ["how.n_actors=500"]))


@pytest.mark.parametrize(
    ("address", "environment", "joins"),
    [(None, None, None), (None, "h:1", "h:1"), ("a:2", "h:1", "a:2"), ("local", "h:1", None), (None, "local", None)],
)
def test_a_run_joins_the_cluster_it_is_told_of(monkeypatch, address, environment, joins):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert cluster_address(HowConfig(address=address)) == joins


def test_a_cpu_cluster_gets_one_actor_a_node():
    assert capture_pool(HowConfig(), [Node(8), Node(8)]) == Pool("capture actors", 2, 1.0, 0.0)


def test_an_autoscaling_cluster_is_measured_against_its_limits():
    head = Node(2)
    asked = [Pool("capture actors", 8, 1, 1), reader_pool()]
    Cluster((head,), {"CPU": 66.0, "GPU": 8.0}).check(asked)
    with pytest.raises(ResourceError, match="8 GPUs asked, at most 4"):
        Cluster((head,), {"CPU": 34.0, "GPU": 4.0}).check(asked)


def test_gpus_an_autoscaler_may_add_count_when_none_is_up():
    assert capture_pool(HowConfig(n_actors=2), [Node(2)], {"CPU": 10.0, "GPU": 2.0}).gpus == 1.0


ZERO = Cluster((Node(2),), {"CPU": 66.0, "GPU": 8.0})
"""As `cluster.yaml` and the KubeRay file start: a head without a GPU, and workers with some once they are asked for."""


def test_every_pool_of_models_waits_for_the_gpus_that_an_autoscaler_may_start():
    how = HowConfig()
    capture = capture_pool(how, ZERO.nodes, ZERO.limits)
    assert (capture.gpus, capture.n, capture.most) == (1.0, 1, 8), "begins with what there is and grows"
    ablation, _ = ablate_pool(RunConfig(), ZERO, n_cells=100)
    assert (ablation.gpus, ablation.n) == (1.0, 8)
    runs = [RunConfig(finetune=FinetuneConfig(seed=seed, complexity_ratio=0.5)) for seed in range(20)]
    room, trials = trial_pool(runs, int(ZERO.cpus), ZERO.gpus, {})
    assert (room.gpus, trials.n) == (1.0, 8)
    for pool in (capture, ablation, trials):
        ZERO.check([pool])
    halves, _ = ablate_pool(RunConfig(how=HowConfig(gpus_per_actor=0.5)), ZERO, n_cells=100)
    assert halves.n == 16


ROOT = Path(__file__).parents[2]


def test_limits_of_the_shipped_clusters_are_their_workers_together():
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    cloud = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert worker_limits(cloud) == {"CPU": 128.0, "GPU": 8.0}
    job = yaml.safe_load((ROOT / "deploy" / "kuberay-rayjob.yaml").read_text())
    cluster = {"metadata": {"name": "vtsweep", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    limits = worker_limits(kuberay._derive_autoscaling_config_from_ray_cr(cluster))
    assert (limits["CPU"], limits["GPU"]) == (64.0, 8.0)


@given(
    kinds=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=4),
    most=st.integers(0, 6),
)
def test_limits_are_the_largest_sums_of_workers_that_may_be_there(kinds, most):
    config = {
        "max_workers": most,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 99}},
            **{str(k): {"max_workers": n, "resources": {"CPU": c, "GPU": g}} for k, (n, c, g) in enumerate(kinds)},
        },
    }
    possible = [numbers for numbers in product(*(range(n + 1) for n, _, _ in kinds)) if sum(numbers) <= most]
    for resource, place in (("CPU", 1), ("GPU", 2)):
        sums = [sum(n * kind[place] for n, kind in zip(numbers, kinds, strict=True)) for numbers in possible]
        assert worker_limits(config).get(resource, 0.0) == max(sums)


def test_the_limits_are_read_where_the_monitor_was_told_of_them(tmp_path, monkeypatch):
    """And another Ray of the machine, or a pod of a cluster of fixed size, has none."""
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"max_workers": 3}))
    arguments = ["--gcs-address=10.9.8.7:6379", f"--autoscaling-config={file}"]
    monitor = subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE)
    try:
        assert wait_for(lambda: head_config("10.9.8.7:6379")) == {"max_workers": 3}
        assert head_config("10.9.8.7:6380") is None
    finally:
        monitor.communicate(b"\n")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "vtsweep")
    assert head_config("10.9.8.7:6379") is None


def wait_for(look):
    """What a process that was just started shows, within 10 s."""
    deadline = time.monotonic() + 10
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_machines_have_time_to_start_where_an_autoscaler_adds_them():
    how = HowConfig(no_progress_timeout_s=5000.0)
    assert ZERO.patient(HowConfig()).no_progress_timeout_s >= 8 * 60
    assert ZERO.patient(how) == how
    assert Cluster((Node(2),)).patient(HowConfig()) == HowConfig()


def test_an_autoscaler_without_gpus_leaves_workers_on_cpus():
    cluster = Cluster((Node(2),), {"CPU": 10.0})
    assert (cluster.gpus, cluster.cpus) == (0.0, 10.0)
    assert ablate_pool(RunConfig(), cluster, n_cells=100)[0] == Pool("ablation actors", 10, 1.0, 0.0)


@given(
    cpus=st.lists(st.integers(1, 16), min_size=1, max_size=5),
    n=st.integers(1, 20),
    each=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_equal_actors_are_accepted_exactly_when_the_nodes_hold_them(cpus, n, each):
    holds = sum(int(c // each) for c in cpus) >= n
    try:
        check_pools([Node(float(c)) for c in cpus], [Pool("actors", n, each)])
    except ResourceError:
        assert not holds
    else:
        assert holds
