"""Question files: readers of formats and published layouts, the row model, scoring, and the source made of them."""
