"""Pre-train a shipped reference checkpoint: ``python -m jobs.pretrain_reference --model reference-joint``."""

import argparse
from pathlib import Path

import torch

from orchestrator.reference.pretrain import Recipe, Trainer

SHIPPED = Path(__file__).parents[1] / "orchestrator" / "reference" / "checkpoints"


def main() -> None:
    """Parse the command line and train; a second call with the same arguments resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=["reference-joint", "reference-cross"])
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"), help="pool of images, run checkpoint")
    parser.add_argument("--out", type=Path, help="checkpoint folder to write; the shipped one by default")
    parser.add_argument("--start", type=Path, help="trained reference-joint for initialisation")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoder-steps", type=int, default=Recipe.encoder_steps)
    parser.add_argument("--answer-steps", type=int, default=Recipe.answer_steps)
    parser.add_argument(
        "--minutes", type=float, help="time limit of the second phase, including its learning-rate schedule"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--processes", type=int, default=1, help="that draw scenes and make batches")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(args.model, args.encoder_steps, args.answer_steps, args.minutes)
    out = args.out or SHIPPED / args.model
    Trainer(recipe, args.work, out, start=args.start, device=args.device, processes=args.processes).run()


if __name__ == "__main__":
    main()
