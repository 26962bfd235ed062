"""Command line: the verbs of an engine for files, and a demo that needs none.

``MODEL.py`` is your code: a file that defines ``build_engine()``. Nothing is imported that you did
not name. Exit status: 0 done, 1 an error, 2 wrong use, 3 what ``--fail-on`` names was met, 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nbi_plus import __version__, demo
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.infer.posterior.status import Flag, Status
from nbi_plus.inspecting import told
from nbi_plus.survey.summary import SurveySummary
from nbi_plus.trust.calibration import DOUBTED

_DONE, _ERROR, _MET, _INTERRUPTED = 0, 1, 3, 130
_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, LookupError)
_UNTRUSTED = "UNTRUSTED"
_OF_CALIBRATIONS = (Flag.UNCALIBRATED.name, Status.UNCERTIFIED.name, Status.AMORTIZED.name)
_NAMES = (*(s.name for s in Status), *(f.name for f in Flag), _UNTRUSTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: the arguments of the process.
    """
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        return _INTERRUPTED
    except _ERRORS as error:
        print(f"nbi-plus {options.command}: {error}", file=sys.stderr)
        return _ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbi-plus", description="Neural posterior estimation you can trust."
    )
    parser.add_argument("--version", action="version", version=f"nbi-plus {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="command", required=True, dest="command"
    )

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:  # noqa: ANN401
        made = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )  # fmt: skip
        made.set_defaults(run=run)
        return made

    own = command("demo", "train on simulated microlensing events, then answer and judge new ones",
                  demo.run)  # fmt: skip
    demo.add_options(own)
    own = command("fit", "train the engine of a model", _fit)
    own.add_argument("model", type=Path, metavar="MODEL.py", help="defines build_engine()")
    own.add_argument("--n-sims", type=demo.count, default=20_000, help="simulations to train on")
    own.add_argument("--n-epochs", type=demo.count, help="passes over them")
    own.add_argument("--observations", type=Path, help="objects whose cadences and errors to take")
    own.add_argument("-o", "--out", type=Path, required=True, metavar="ENGINE.nbi")
    _common(own)
    own = command("predict", "answer every object of a source: one row of a catalogue each",
                  _predict)  # fmt: skip
    own.add_argument("model", type=Path, metavar="MODEL.py", help="defines build_engine()")
    own.add_argument("engine", type=Path, metavar="ENGINE.nbi", help="what fit has written")
    own.add_argument("source", metavar="SOURCE", help="a file, a folder or a glob")
    own.add_argument("-o", "--out", type=Path, required=True, help=".parquet, .h5, .fits, folder")
    _kinds(own)
    own.add_argument("--carry", action="append", default=[], metavar="name",
                     help="a column of the source that the catalogue takes over")  # fmt: skip
    own.add_argument("--n-samples", type=demo.count, default=500, help="draws of each object")
    own.add_argument("--chunk-size", type=demo.count, help="objects answered together")
    own.add_argument("--keep-draws", type=int, default=0, help="draws in the catalogue")
    own.add_argument("--append", action="store_true", help="SOURCE is a further night")
    _fails(own)
    _common(own)
    own = command("retry", "answer objects of a catalogue again that nothing certified", _retry)
    own.add_argument("model", type=Path, metavar="MODEL.py", help="defines build_engine()")
    own.add_argument("engine", type=Path, metavar="ENGINE.nbi", help="what fit has written")
    own.add_argument("source", metavar="SOURCE", help="what was predicted")
    own.add_argument("out", type=Path, metavar="OUT", help="what predict has written")
    _kinds(own)
    own.add_argument("--chunk-size", type=demo.count, help="objects answered together")
    _computed(own)
    _fails(own)
    _judging(command)
    own = command("inspect", "say what a file is, without running anything in it", _inspect)
    own.add_argument("file", type=Path, metavar="FILE")
    own.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _judging(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that judge an engine or a catalogue."""
    own = command("calibrate", "ask a trained engine about simulated objects of known truth",
                  _calibrate)  # fmt: skip
    own.add_argument("model", type=Path, metavar="MODEL.py", help="defines build_engine()")
    own.add_argument("engine", type=Path, metavar="ENGINE.nbi", help="what fit has written")
    own.add_argument("-o", "--out", type=Path, required=True, metavar="CALIBRATION.h5")
    own.add_argument("--n-objects", type=demo.count, default=1000, help="objects to simulate")
    own.add_argument("--observations", type=Path, help="objects whose cadences and errors to take")
    own.add_argument(
        "--fail-on",
        type=partial(_fail_on, _OF_CALIBRATIONS),
        default=(),
        metavar="NAMES",
        help="UNCALIBRATED (a p-value below 1 %%), UNCERTIFIED, AMORTIZED: exit 3",
    )
    _common(own)
    own = command("report", "write one page about a catalogue, for any browser", _report)
    own.add_argument("catalogue", type=Path, help="what predict has written: a file or a folder")
    own.add_argument("-o", "--out", type=Path, required=True, metavar="PAGE.html")
    own.add_argument("--source", help="what was surveyed, for S/N and light curves")
    _kinds(own)
    own.add_argument("--calibration", type=Path, help="what calibrate has written")
    own.add_argument("--model", type=Path, metavar="MODEL.py", help="for the band of its models")
    _fails(own)
    _common(own, computing=False)


def _kinds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", help="SOURCE is in the schema of a survey: ztf-alert, ...")
    parser.add_argument("--ingest", action="append", default=[], metavar="name=value", type=_option,
                        help="how a kind is read: nested=fp_hists, limits=3, ...")  # fmt: skip


def _common(parser: argparse.ArgumentParser, *, computing: bool = True) -> None:
    parser.add_argument("--column", action="append", default=[], metavar="role=name", type=_pair,
                        help="which column is what: id=oid, t=mjd, ...")  # fmt: skip
    if computing:
        parser.add_argument("--seed", type=int, help="of all that is random; else the engine's")
        _computed(parser)
    else:
        _told(parser)


def _computed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, ...; else the engine's")
    parser.add_argument("--n-jobs", type=int, help="processes that simulate; else the engine's")
    _told(parser)


def _told(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _fails(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fail-on", type=partial(_fail_on, _NAMES), default=(), metavar="NAMES",
                        help="statuses and flags, or UNTRUSTED: exit 3 if any")  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not (role and equals and name):
        raise argparse.ArgumentTypeError(f"must be role=name, but is {text!r}")
    return role, name


def _option(text: str) -> tuple[str, Any]:
    name, value = _pair(text)
    try:
        return name, json.loads(value)
    except ValueError:  # a plain word
        return name, value


def _fail_on(known: Sequence[str], text: str) -> tuple[str, ...]:
    names = tuple(name.strip().upper() for name in text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, but has {unknown[0]}")
    return names


# --- commands ------------------------------------------------------------------------------------


def _built(path: Path, options: argparse.Namespace) -> Engine:
    """Return the engine that the user's file builds, with what the command line says of it."""
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.py must be a file, but there is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"MODEL.py must be a file of Python, but is {path.name}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where processes that simulate look its functions up
    spec.loader.exec_module(module)
    build = getattr(module, "build_engine", None)
    if not callable(build):
        raise ImportError(f"{path.name} must define build_engine(), but does not.")
    engine = build()
    if not isinstance(engine, Engine):
        raise TypeError(
            f"build_engine() must return an nbi_plus.Engine, but returned {type(engine).__name__}."
        )
    chosen = {k: getattr(options, k, None) for k in ("seed", "device", "n_jobs")}
    return engine.set_params(**{k: v for k, v in chosen.items() if v is not None})


def _loaded(options: argparse.Namespace) -> Engine:
    """Return the fitted engine of a file, with the user's code."""
    built = _built(options.model, options)
    code = {"ladder": built.ladder, "device": built.device, "n_jobs": built.n_jobs}
    try:
        engine = Engine.load(options.engine, built.simulator, **code)
    except ValueError:
        # a prior, a noise or a featurizer that is code itself is in no file
        parts = {"prior": built._prior(), "noise": built.noise}
        network = built.featurizer if not isinstance(built.featurizer, (str, dict)) else None
        engine = Engine.load(options.engine, built.simulator, featurizer=network, **parts, **code)
    return engine if options.seed is None else engine.set_params(seed=options.seed)


def _fit(options: argparse.Namespace) -> int:
    engine = _built(options.model, options)
    given = {}
    if options.observations is not None:
        given["observations"] = Observations.read(options.observations, **dict(options.column))
    chosen = {} if options.n_epochs is None else {"n_epochs": options.n_epochs}
    engine.fit(options.n_sims, progress=False if options.quiet else None, **chosen, **given)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    engine.save(options.out)
    _say(options, {"engine": str(options.out), **told(options.out)})
    return _DONE


def _predict(options: argparse.Namespace) -> int:
    engine = _loaded(options)
    summary = engine.predict_survey(
        options.source, options.out, kind=options.kind, ingest=dict(options.ingest),
        columns=dict(options.column), carry=options.carry,
        n_samples=options.n_samples, chunk_size=options.chunk_size,
        keep_draws=options.keep_draws, append=options.append,
        progress=False if options.quiet else None,
    )  # fmt: skip
    return _counted(options, summary)


def _retry(options: argparse.Namespace) -> int:
    options.seed = None  # the catalogue says which
    summary = _loaded(options).retry_survey(
        options.source, options.out, kind=options.kind, ingest=dict(options.ingest),
        chunk_size=options.chunk_size, n_jobs=options.n_jobs,
        progress=False if options.quiet else None,
    )  # fmt: skip
    return _counted(options, summary)


def _counted(options: argparse.Namespace, summary: SurveySummary) -> int:
    _say(options, asdict(summary) | {"rate": summary.rate}, str(summary))
    return _MET if _met(summary, options.fail_on) else _DONE


def _met(summary: SurveySummary, names: Sequence[str]) -> bool:
    """Say whether any object has one of these statuses or flags."""
    counts = summary.status | summary.flags | {_UNTRUSTED: summary.n_objects - summary.n_trusted}
    return any(counts.get(name, 0) for name in names)


def _calibrate(options: argparse.Namespace) -> int:
    engine = _loaded(options)
    seen = options.observations
    seen = None if seen is None else Observations.read(seen, **dict(options.column))
    found = engine.calibrate(options.n_objects, observations=seen,
                             progress=False if options.quiet else None)  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found.save(options.out)
    _say(options, {"calibration": str(options.out), **told(options.out)}, found.report)
    figures = int((found.p_values < DOUBTED).sum()), found.n_excluded, found.n_amortized
    counts = dict(zip(_OF_CALIBRATIONS, figures, strict=True))
    return _MET if any(counts[name] for name in options.fail_on) else _DONE


def _report(options: argparse.Namespace) -> int:
    from nbi_plus.report.report import write_report  # matplotlib's and pyarrow's time

    engine = None if options.model is None else _built(options.model, options)
    columns = dict(options.column) or None
    made = write_report(options.catalogue, options.out, source=options.source, columns=columns,
                        kind=options.kind, ingest=dict(options.ingest),
                        calibration=options.calibration, engine=engine)  # fmt: skip
    s = made.summary
    said = {"page": str(made.page), "bytes": made.n_bytes, "objects": s.n_objects,
            "trusted": s.n_trusted, "status": s.status, "flags": s.flags}  # fmt: skip
    _say(options, said)
    return _MET if _met(s, options.fail_on) else _DONE


def _inspect(options: argparse.Namespace) -> int:
    options.quiet = False
    _say(options, told(options.file))
    return _DONE


def _say(options: argparse.Namespace, found: dict[str, Any], text: str = "") -> None:
    if options.json:
        print(json.dumps(found, default=str, indent=1))
    elif not options.quiet:
        print(text or "\n".join(f"{k + ':':<12} {v}" for k, v in found.items()))


if __name__ == "__main__":
    sys.exit(main())
