"""What a release is held to before it is built, and that the workflows ask for what there is."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.release import NotReady, check_version, newest_section, version
from tests.support.documents import ROOT

RELEASED = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-01-31\n\n- One.\n\n## [0.1.0] - 2025-12-01\n"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_without_a_tag_any_version_may_be_tried() -> None:
    check_version(None, "0.2.0", "")


def test_a_tag_says_what_the_package_and_the_changelog_say() -> None:
    check_version("v0.2.0", "0.2.0", RELEASED)

    assert newest_section(RELEASED) == "0.2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())


@pytest.mark.parametrize(
    ("tag", "number", "changelog", "words"),
    [
        ("v0.3.0", "0.2.0", RELEASED, "pyproject.toml says 0.2.0"),
        ("0.2.0", "0.2.0", RELEASED, "the tag is 0.2.0"),
        ("v0.3.0", "0.3.0", RELEASED, "no section"),
        ("v0.1.0", "0.1.0", "## [Unreleased]\n\n## [0.1.0] - unreleased\n", "no section"),
        ("v0.2.0", "0.2.0", RELEASED.replace("[Unreleased]\n", "[Unreleased]\n\n- Two.\n"), "under Unreleased"),
        ("v0.2.0", "0.2.0", RELEASED.replace("[Unreleased]\n", "[Unreleased]\n\n### Added\n\n- Two.\n"), "under Unrel"),
    ],
)
def test_what_does_not_agree_is_no_release(tag: str, number: str, changelog: str, words: str) -> None:
    with pytest.raises(NotReady, match=re.escape(words)):
        check_version(tag, number, changelog)


def test_the_workflows_run_what_there_is_and_say_that_they_never_did() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in WORKFLOWS]
    jobs = [job for text in texts for job in yaml.safe_load(text)["jobs"].values()]
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    targets = re.findall(r"\bmake ([\w-]+)", "\n".join(line for line in commands if "apt-get" not in line))

    assert ".ci/run" in commands
    assert {"mac-short", "release-check", "install", "demo"} == set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert all("never run" in text for text in texts)
    assert all(job["timeout-minutes"] for job in jobs)
