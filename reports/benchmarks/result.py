"""The result of a benchmark: a JSON file beside its script, with where and when it ran."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any


def write_result(script: str, found: dict[str, Any], package: ModuleType) -> None:
    """Write ``found`` with device, date and the versions of Python and of the ``package`` it rests on, and print it."""
    surroundings = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        package.__name__: package.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(found | surroundings, indent=2) + "\n"
    Path(script).with_suffix(".json").write_text(text)
    print(text)
