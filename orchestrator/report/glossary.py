"""Definitions of the report's terms, shown on the page and in the documentation."""

from __future__ import annotations

GLOSSARY = (
    ("scene", "A picture of which everything is known: number, kinds, places and sizes of objects."),
    ("tier", "Complexity of the scene that a question is asked of: 1 to 4 objects are low, 6 to 12 high. Families, "
             "wordings and answers are the same in both."),
    ("complexity ratio", "Share of high-tier questions in a fine-tuning mixture of fixed size and number of steps."),
    ("compressed", "Visual information lies in fewer tokens or directions. Each metric has a direction; words and "
                   "arrows of this page say which way is more compressed."),
    ("blind level", "Accuracy of the best answers that can be given without the image."),
    ("base model", "The model before fine-tuning."),
    ("forgetting", "Accuracy on simple scenes that the base model had and the trained model lacks."),
    ("drift", "Distance of a trained model's states from the base model's on the same images, over their own length."),
    ("primary outcome", "What the sweep is about, named before it runs and judged first; everything else is explored."),
    ("supported", "The whole interval lies beyond the smallest effect of interest, on the claim's side."),
    ("contradicted", "The whole interval lies beyond the smallest effect of interest, on the other side."),
    ("equivalent to nothing", "The 90 % interval lies within the smallest effect of interest."),
    ("undecided", "Not one of these: more seeds or images are needed."),
    ("95 % interval", "Drawn anew, such an interval holds the true value in 95 of 100 studies: over images for "
                      "compression, over seeds for a sweep."),
    ("power", "How often a study of this size sees an effect that is there."),
    ("early, middle, late", "Thirds of the decoder's layers."),
    ("skill", "A probe's (score − baseline) / (1 − baseline): 0 is the majority class or the mean, 1 perfect."),
    ("q", "False-discovery rate at which a row would just count as found (Benjamini-Hochberg)."),
)  # fmt: skip
"""(word, definition)."""
