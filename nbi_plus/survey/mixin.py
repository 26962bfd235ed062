"""Mixin: the verbs by which an engine answers surveys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbi_plus import launch
from nbi_plus.arguments import whole
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.amortized import Amortized, Asked
from nbi_plus.infer.ladder.escalation import Answered
from nbi_plus.infer.ladder.waiting import Begun, Waiting
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.io.fingerprint import content, fingerprint
from nbi_plus.survey.beside import Beside, Tells
from nbi_plus.survey.catalogue import Provenance
from nbi_plus.survey.chunks import Reading
from nbi_plus.survey.ingesting import open_survey
from nbi_plus.survey.parts import SurveyError
from nbi_plus.survey.retrying import Known, run_retry
from nbi_plus.survey.run import SurveyRequest, run_survey
from nbi_plus.survey.summary import SurveySummary
from nbi_plus.survey.unfinished import KEPT_DRAWS, unfinished_of
from nbi_plus.torch_state import door, doors

if TYPE_CHECKING:
    import pyarrow

    from nbi_plus.data.tables.surveys import Names
    from nbi_plus.infer.ladder.ladder import Ladder

Surveyed = tuple["NetworkSurvey", Provenance, Reading]


@dataclass(frozen=True)
class NetworkSurvey:
    """A fitted engine, and how it is asked about the objects of a survey: plain enough to be sent.

    Attributes
    ----------
    fitted : Fitted
    how : Computing
    n_samples, keep, seed : int
    modes : callable or None
    """

    fitted: Any
    how: Any
    n_samples: int
    keep: int
    seed: int
    modes: Callable | None = None

    @property
    def at_once(self) -> int:
        """Objects that climb the ladder together."""
        return launch.of(self.how.device).escalated_objects

    @door
    def answer(self, observations: Observations) -> Begun:
        """Return the answers that the first rung settles, and the objects that climb later."""
        objects = self.fitted.like_training(observations)
        amortized = self._amortized.looking_at(self.modes, objects)
        return amortized.begin(objects, self._asked(amortized))

    @door
    def climb(self, waiting: Sequence[Waiting]) -> list[Answered]:
        """Return the answers for objects that waited."""
        return self._amortized.climb(waiting, self._asked(self._amortized))

    @property
    def _amortized(self) -> Amortized:
        return self.fitted.amortized(self.how, "predict_survey")

    def _asked(self, amortized: Amortized) -> Asked:
        return amortized.asked(self.n_samples, self.keep, self.seed, KEPT_DRAWS)


@dataclass(frozen=True)
class RetryingSurvey(NetworkSurvey):
    """The same, asked once more about objects that nothing certified.

    Attributes
    ----------
    unfinished : pyarrow.Table
        What is kept of these.
    """

    unfinished: pyarrow.Table | None = None

    @door
    def answer(self, observations: Observations) -> Begun:
        """Return the answers about some objects, which start where their kept draws are."""
        objects = self.fitted.like_training(observations)
        place = {name: i for i, name in enumerate(self.unfinished["id"].to_pylist())}
        table = self.unfinished.take([place[name] for name in objects.ids.astype(str)])
        tried = list(unfinished_of(table))
        for one, data_hash in zip(tried, objects.hashes.tolist(), strict=True):
            if one.data_hash != data_hash:
                raise SurveyError(
                    f"source must hold the data that were answered, but those of object {one.id} "
                    "are others. Predict it anew."
                )
        costs = np.array([[one.n_simulated, one.n_gradients] for one in tried]).T
        amortized = self._amortized.after(tried, costs, objects, self.seed)
        return amortized.begin(objects, self._asked(amortized))


@doors
class SurveyMixin:
    """Surveys for an engine that knows its ``_fitted``, ``_how`` and ``_seed``."""

    def predict_survey(  # noqa: PLR0913 - the contract
        self,
        source: object,
        out: str | Path,
        *,
        kind: str | None = None,
        ingest: Mapping[str, Any] | None = None,
        columns: Mapping[str, Names] | None = None,
        carry: Sequence[str] = (),
        n_samples: int = 500,
        chunk_size: int | None = None,
        keep_draws: int = 0,
        client: Any = None,  # noqa: ANN401 - of dask, which is optional
        n_jobs: int | None = None,
        resume: bool = True,
        append: bool = False,
        ladder: Ladder | None = None,
        seed: int | None = None,
        modes: Callable | None = None,
        beside: Mapping[str, Tells] | None = None,
        progress: bool | None = None,
    ) -> SurveySummary:
        """Answer every object of a source, and write a catalogue of one row each.

        The source is read, answered and written a chunk at a time. Stopped at any moment, the same
        call goes on where it was: objects that are in the output are not answered again.

        Parameters
        ----------
        source : path, glob, list of paths, table, Observations, iterator of these, or collection
            Parquet, FITS, HDF5 or CSV files in the long format, or with light curves nested in the
            rows of objects; pandas, nested-pandas, astropy and arrow tables; a Dask frame or an
            LSDB catalogue. The rows of an object must stand together; files are read in the order
            of their names.
        out : path
            ``.parquet``, ``.h5`` or ``.fits``; a folder, or a name without suffix, becomes a folder
            of parquet files.
        kind : str, optional
            That of `Observations.from_survey`, as ``"ztf-alert"``: the source is in the schema of a
            survey. Files of alerts are read a few thousand at a time; what lies further apart must
            be of different objects.
        ingest : mapping, optional
            With ``kind``: options of `from_survey`, as ``{"nested": "fp_hists", "time": "mjd"}``.
        columns : mapping of role to column, optional
            As for `Observations.from_table`, ``{"id": "oid"}``, and the columns of scalars.
        carry : sequence of str
            Columns of the source that the catalogue takes over: ``ra``, ``dec``, ....
        n_samples : int
            Draws wanted of each object.
        chunk_size : int, optional
            Objects that are answered together; default: by the memory of the machine.
        keep_draws : int
            How many draws of equal weight stand in the catalogue as lists, ``{parameter}_draws``.
        client : dask.distributed.Client, optional
            Whose workers answer the chunks.
        n_jobs : int, optional
            Processes that simulate; default: the engine's.
        resume : bool
            False begins anew, whatever there is.
        append : bool
            Whether the source is a further night: its rows follow those that there are.
        ladder : Ladder, optional
            Default: the engine's.
        seed : int, optional
            Default: the engine's. The draws of an object depend on the seed and its id alone.
        modes : callable, optional
            ``modes(observations)``: places worth a look, as for `predict_many`.
        beside : mapping of name to PointEngine or ModelClassifier, optional
            Fitted for the same data. Their numbers stand in the catalogue, too:
            ``{name}_{parameter}_{rule}``, ``{name}_probability_{model}``, ``{name}_unlike_any``.
        progress : bool, optional
            Whether it tells how far it is: False never, True always. Default: a bar on terminals
            and in notebooks, elsewhere lines on stderr, where it takes long.

        Returns
        -------
        SurveySummary
        """
        options = {"n_samples": n_samples, "keep_draws": keep_draws, "n_jobs": n_jobs,
                   "ladder": ladder, "seed": seed, "modes": modes}  # fmt: skip
        model, made_by, reading = self.surveyed(columns, carry, **options)
        if client is None:  # what workers say nobody reads
            model = replace(model, how=replace(model.how, progress=None))
        said = {"n_samples": model.n_samples, "keep_draws": model.keep,
                "ladder": repr(model.how.ladder)}  # fmt: skip
        request = SurveyRequest(
            Path(out), reading, said, chunk_size, client, resume, append, progress,
            Beside.of(beside),
        )  # fmt: skip
        return run_survey(model, made_by, open_survey(source, kind, ingest), request)

    def retry_survey(  # noqa: PLR0913 - as predict_survey
        self,
        source: object,
        out: str | Path,
        *,
        kind: str | None = None,
        ingest: Mapping[str, Any] | None = None,
        ladder: Ladder | None = None,
        chunk_size: int | None = None,
        n_jobs: int | None = None,
        resume: bool = True,
        beside: Mapping[str, Tells] | None = None,
        progress: bool | None = None,
    ) -> SurveySummary:
        """Answer those objects of a finished catalogue again that nothing certified.

        They start where the draws are that stand beside the catalogue, and the budget counts anew.
        Their rows are replaced, all at once in a catalogue of one file; no other is touched.

        Parameters
        ----------
        source : path, glob, list of paths, table, Observations or collection
            The same as for `predict_survey`: of a catalogue of several nights, one of these.
        out : path
            The catalogue. It says which columns, draws and seed there were.
        kind, ingest, beside
            As for `predict_survey`, and the same.
        ladder : Ladder, optional
            With other rungs or budgets; default: the engine's.
        chunk_size, n_jobs, progress
            As for `predict_survey`.
        resume : bool
            False forgets what an interrupted call has answered.

        Returns
        -------
        SurveySummary
        """
        known = Known.of(Path(out), open_survey(source, kind, ingest))
        said = known.survey
        model, made_by, reading = self.surveyed(
            known.columns, said["carry"], n_samples=said["n_samples"], n_jobs=n_jobs,
            keep_draws=said["keep_draws"], ladder=ladder, seed=said["seed"],
        )  # fmt: skip
        if made_by.engine != said["engine"]:
            raise SurveyError(
                f"{out} must be of this engine, but was made by {said['engine']}. Load that one."
            )
        every = {f.name: getattr(model, f.name) for f in fields(model)}
        others = Beside.of(beside)
        if others.said != said.get("beside", {}):
            raise SurveyError(
                f"beside must be the same as in {out}, which has {list(said.get('beside', {}))}, "
                f"but is {list(others.tellers)} or was fitted anew."
            )
        again = RetryingSurvey(**every, unfinished=known.unfinished)
        settings = {"ladder": repr(model.how.ladder)}
        request = SurveyRequest(
            Path(out), reading, settings, chunk_size, resume=resume, progress=progress,
            beside=others,
        )  # fmt: skip
        return run_retry(again, made_by, known, request)

    def surveyed(
        self,
        columns: Mapping[str, Names] | None = None,
        carry: Sequence[str] = (),
        *,
        n_samples: int = 500,
        keep_draws: int = 0,
        n_jobs: int | None = None,
        ladder: Ladder | None = None,
        seed: int | None = None,
        modes: Callable | None = None,
    ) -> Surveyed:
        """Return what answers a survey, what its catalogue says of that, and how it is read."""
        import nbi_plus  # which imports this module, and knows its version

        if modes is not None and not callable(modes):
            raise ValueError(
                "modes must be a function of observations for a survey, whose objects come in "
                f"chunks, but is {type(modes).__name__}."
            )
        fitted = self._fitted("predict_survey")
        network = fitted.network("predict_survey")
        how = self._how(ladder)
        how = replace(how, n_jobs=how.n_jobs if n_jobs is None else n_jobs, progress=False)
        chosen = self._seed(seed)
        wanted = whole("n_samples", n_samples), whole("keep_draws", keep_draws, 0)
        model = NetworkSurvey(fitted, how, *wanted, chosen, modes)
        known = fitted.conventions
        reading = Reading(
            dict(columns or {}), tuple(carry), tuple(network.conditions.scalars), known.categories
        )
        made_by = Provenance(
            engine_hash(fitted),
            nbi_plus.__version__,
            chosen,
            Parameters.of(fitted.prior),
            keep_draws,
        )
        return model, made_by, reading


def engine_hash(fitted: Any) -> str:  # noqa: ANN401 - a Fitted, which stands above
    """Return the fingerprint of what was trained and the problem it was trained for."""
    states = [network.state_dict() for network in fitted.model.networks]
    names = [name for state in states for name in state]
    told = {"prior": fitted.prior.manifest(), "noise": fitted.noise.meta(), "names": names}
    told |= {"shares": fitted.model.shares} if len(states) > 1 else {}
    return fingerprint(told, (content(v) for state in states for v in state.values()))
