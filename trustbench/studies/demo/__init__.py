"""The demo: the whole main job on a small model and text that come with the package."""

from trustbench.report import Table
from trustbench.studies import Plot, Study, study
from trustbench.studies.demo import figures
from trustbench.studies.demo.page import page
from trustbench.studies.demo.run import DemoConfig, run

STUDY = Study(
    name="demo",
    about="SAEs on every layer of a small model, trained, evaluated and looked into, offline.",
    config=DemoConfig,
    run=run,
    figures={
        "training": Plot(
            figures.training_curves,
            ("metrics",),
            "Fraction of variance unexplained, loss and dead features of every layer against"
            " training tokens.",
        ),
        "densities": Plot(
            figures.density_histograms,
            ("eval",),
            "For every layer, how many features are active on what share of held-out tokens.",
        ),
    },
    page=page,
)


def demo(config: DemoConfig, *, progress: bool = True) -> dict[str, Table]:
    """Train SAEs on all six layers of the built-in model, on the built-in text, offline.

    Evaluates them, looks at what features respond to and writes report.html. A few minutes on 2
    cores; a stopped demo continues when it is called again.

    Parameters
    ----------
    config : DemoConfig
    progress : bool
        Say what is being done, show a progress bar, print the evaluation.

    Returns
    -------
    {name: Table}
        See trustbench.studies.demo.run.

    Raises
    ------
    KeyboardInterrupt
        When training was stopped.
    """
    return study("demo", config, progress=progress)


__all__ = ["STUDY", "DemoConfig", "demo"]
