"""Pages that the site's builder makes from the package: every setting, and the words of the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.config.reference import settings_page
from orchestrator.report.glossary import GLOSSARY


def glossary_page() -> str:
    rows = "\n".join(f"| {word} | {meaning} |" for word, meaning in GLOSSARY)
    return f"# Glossary\n\nWords of reports, tables and these pages.\n\n| word | meaning |\n|---|---|\n{rows}\n"


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, text in (("settings.md", settings_page()), ("glossary.md", glossary_page())):
        files.append(File.generated(config, name, content=text))
    return files
