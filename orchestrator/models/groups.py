"""The token groups, in order of their codes in a batch's `groups`."""

OTHER, VISION, TEXT, PADDING = 0, 1, 2, -1
"""Template, BOS and separators; visual content; the question's own tokens; padding."""
