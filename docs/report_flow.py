"""The nightly report as a Metaflow flow: each part in a step of its own, retried and timed by itself.

    pip install "plumbline[flow]"
    python report_flow.py run --kb /srv/kb --output /srv/report
    python report_flow.py --datastore=s3 argo-workflows create    # or step-functions, airflow: docs/report.md

The plain command does the same in one process: `rag report --kb /srv/kb -o /srv/report --date yesterday`.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from metaflow import FlowSpec, Parameter, card, current, retry, schedule, step, timeout
from metaflow.cards import Markdown

from api.cli_common import open_answer_log, open_knowledge_base
from api.settings import silence
from eval.findings import Section
from eval.night_inputs import Night
from eval.report import Report, conclude, publish, run_monitors
from eval.report_files import as_text, post


@schedule(cron="0 5 * * *")
class NightlyReport(FlowSpec):
    """snapshot -> drift -> retrieval -> judge -> report -> notify."""

    kb = Parameter("kb", help="Folder or lakefs://REPOSITORY.", default=".")
    output = Parameter("output", help="Folder for the report's files.", default="report")
    day = Parameter("day", help="Day to report on, UTC; yesterday by default.", default="")
    webhook = Parameter("webhook", help="Chat webhook for the ten lines, unless OK.", default="")

    def open_night(self) -> Night:
        """The inputs of the night, the same in every step."""
        silence()
        kb = open_knowledge_base(self.kb)
        return Night.of(kb, open_answer_log(kb), date.fromisoformat(self.when), self.commit)

    def measured(self, *names: str) -> list[str]:
        """The sections of some monitors, as JSON: what passes from step to step."""
        night = self.open_night()
        try:
            return [section.model_dump_json() for section in run_monitors(night, names)]
        finally:
            night.close()

    @retry(times=2)
    @timeout(minutes=10)
    @step
    def start(self):
        """Snapshot: fix the day and the release, and compare the documents with last night's."""
        silence()
        self.when = self.day or (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
        self.commit = open_knowledge_base(self.kb).repository.resolve("main")
        self.sections = self.measured("changes", "corpus")
        self.next(self.drift)

    @retry(times=2)
    @timeout(minutes=20)
    @step
    def drift(self):
        """The embedder's canary, and the questions of the day."""
        self.canary = self.measured("embedder")
        self.asked = self.measured("queries")
        self.next(self.retrieval)

    @retry(times=2)
    @timeout(minutes=30)
    @step
    def retrieval(self):
        """The golden questions."""
        self.sections += self.canary + self.measured("retrieval") + self.asked
        self.next(self.judge)

    @retry(times=2)
    @timeout(minutes=60)
    @step
    def judge(self):
        """The answers that were served."""
        self.sections += self.measured("answers", "service")
        self.next(self.report)

    @card(type="blank")
    @retry(times=2)
    @timeout(minutes=20)
    @step
    def report(self):
        """Judge all of it together, write the files, keep the night."""
        self.sections += self.measured("housekeeping")
        night = self.open_night()
        made = conclude(night, [Section.model_validate_json(text) for text in self.sections])
        night.close()
        publish(night.knowledge_base, made, Path(self.output))
        self.made = made.model_dump_json()
        current.card.append(Markdown(f"```\n{as_text(made)}```"))
        self.next(self.notify)

    @retry(times=3)
    @timeout(minutes=2)
    @step
    def notify(self):
        """Send what somebody should look at."""
        made = Report.model_validate_json(self.made)
        if self.webhook and made.exit_code:
            post(made, self.webhook)
        self.next(self.end)

    @step
    def end(self):
        """The ten lines, for the log."""
        print(as_text(Report.model_validate_json(self.made)))


if __name__ == "__main__":
    NightlyReport()
