"""Refuse retired identifiers and words (tools/retired_words.txt) in code, tests, docs and README.

    python tools/check_words.py

Prints file:line, the word and its replacement for each occurrence, and exits with 1 if there is any. A line with the
comment `# retired` is left out: it handles an old name.
"""

import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("retired_words.txt")
SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".csv", ".cff", ".yaml", ".yml", ".typed", ""}
EXCLUDED = (
    "tools/",
    "CHANGELOG.md",
    "LICENSE",
    "src/adhere/models/adhere-emoji/tokenizer/",
    "src/adhere/models/adhere-photo/LICENSE",
)


def read_patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return (pattern, replacement) of each entry."""
    patterns, flags = [], re.NOFLAG
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            flags = re.NOFLAG if line == "[identifiers]" else re.IGNORECASE
        elif line and not line.startswith("#"):
            pattern, replacement = line.split(" -> ")
            patterns.append((re.compile(pattern, flags), replacement))
    return patterns


def tracked_files() -> list[Path]:
    """Return the text files of the repository that are checked, also new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [Path(name) for name in dict.fromkeys(names) if not name.startswith(EXCLUDED)]
    return [path for path in paths if path.is_file() and path.suffix in SUFFIXES]


def main() -> None:
    """Check all files."""
    patterns = read_patterns()
    found = 0
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "# retired" in line:
                continue
            for pattern, replacement in patterns:
                if match := pattern.search(line):
                    found += 1
                    print(f"{path}:{number}: '{match[0]}' is retired; write {replacement}")
    print(f"{found} retired words", file=sys.stderr)
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
