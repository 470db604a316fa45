"""What a CI reads: JUnit XML, SARIF, GitHub's annotations and step summary, Markdown, JSON.

All take the same: `Checked` results (an artifact's name, its result, its file) and findings that belong to none.
Three values stay three values: an inconclusive check is an error in JUnit, `open` in SARIF, a warning on GitHub,
and never a pass.
"""

from quantplan.report.checks import Check, Checked, checks_of, worst
from quantplan.report.ci_files import CiTargets, write_ci_files
from quantplan.report.ci_markdown import COMMENT_CHARACTERS, MARKER, SUMMARY_BYTES, markdown, step_summary
from quantplan.report.github import github_annotations
from quantplan.report.junit import junit_xml
from quantplan.report.sarif import sarif

__all__ = [
    "COMMENT_CHARACTERS",
    "MARKER",
    "SUMMARY_BYTES",
    "Check",
    "Checked",
    "CiTargets",
    "checks_of",
    "github_annotations",
    "junit_xml",
    "markdown",
    "sarif",
    "step_summary",
    "worst",
    "write_ci_files",
]
