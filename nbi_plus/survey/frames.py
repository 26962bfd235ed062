"""Frames: a survey as a pure function of a frame, for the partitions of Dask and LSDB."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nbi_plus.data.tables.tables import arrow_of_frame
from nbi_plus.survey.answering import Answering, SurveyModel
from nbi_plus.survey.beside import Beside, Tells
from nbi_plus.survey.catalogue import Catalogue, Provenance, carried_fields
from nbi_plus.survey.chunks import Reading, chunks, none_done
from nbi_plus.survey.sources import open_source

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from nbi_plus.data.tables.surveys import Names

_NEEDED = {"lsdb": (0, 11), "nested_pandas": (0, 6)}  # whose catalogues and frames are tested


@dataclass(frozen=True)
class FrameFunction:
    """Answers about the objects of a frame, as a frame of the columns of a catalogue.

    Of a nested frame each row is an object, and keeps its place in the index, whose name and type
    an empty frame keeps.

    Attributes
    ----------
    model : SurveyModel
    made_by : Provenance
    reading : Reading
    carried : tuple of pyarrow.Field
        What goes through.
    beside : Beside
        Other estimators that are asked about the same objects.
    """

    model: SurveyModel
    made_by: Provenance
    reading: Reading
    carried: tuple[pyarrow.Field, ...]
    beside: Beside = Beside()

    @cached_property
    def meta(self) -> pandas.DataFrame:
        """An empty frame of the columns that there will be."""
        return self._catalogue.schema.empty_table().to_pandas()

    @property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.made_by, self.carried + self.beside.fields)

    def __call__(self, frame: Any) -> Any:  # noqa: ANN401 - a frame, or a catalogue of LSDB
        """Return the answers about a frame; of a catalogue, the catalogue of the answers."""
        _check_version(frame)
        if hasattr(frame, "map_partitions"):
            return frame.map_partitions(self, meta=self.meta)
        if not len(frame):
            return self.meta.set_axis(frame.index)  # whose name joined partitions are to keep
        # no more objects than rows: all are one chunk
        chunk = next(chunks(open_source(frame), self.reading, len(frame), none_done))
        answering = Answering(self.model, self._catalogue, self.beside)
        answers = answering(chunk).table.to_pandas()
        if len(answers) == len(frame):
            answers.index = frame.index
        return answers


def _check_version(frame: Any) -> None:  # noqa: ANN401 - a frame, or a catalogue of LSDB
    """Refuse catalogues and frames of versions that this was never tried with."""
    for name in {kind.__module__.split(".")[0] for kind in type(frame).__mro__} & set(_NEEDED):
        came = getattr(sys.modules[name], "__version__", "0")
        numbers = tuple(int(part) for part in re.findall(r"\d+", came)[:2])
        if numbers < _NEEDED[name]:
            needed = ".".join(map(str, _NEEDED[name]))
            raise ImportError(
                f"{name} must be of version {needed} or later, but is {came}. Install it with: pip "
                f'install "{name.replace("_", "-")}>={needed}"'
            )


def _arrow_type(kind: Any) -> pyarrow.DataType:  # noqa: ANN401 - a dtype of numpy or pandas
    """Return the type that the columns of Dask and LSDB have in arrow."""
    import pyarrow as pa

    known = getattr(kind, "pyarrow_dtype", None)
    if known is not None:
        return known
    is_plain = isinstance(kind, np.dtype) and kind.kind != "O"
    return pa.from_numpy_dtype(kind) if is_plain else pa.string()


def frame_function(
    engine: Any,  # noqa: ANN401 - an Engine, which stands above
    columns: Mapping[str, Names] | None = None,
    carry: Sequence[str] = (),
    *,
    like: Any = None,  # noqa: ANN401 - a frame
    beside: Mapping[str, Tells] | None = None,
    **options: Any,  # noqa: ANN401 - passed on
) -> FrameFunction:
    """Return a function of a frame for ``map_partitions``, with attribute ``meta``.

    Parameters
    ----------
    engine : Engine
        Fitted for many objects.
    columns : mapping of role to column, optional
        As for `Engine.predict_survey`.
    carry : sequence of str
        Columns that go through; floats, unless ``like`` tells otherwise.
    like : frame or catalogue, optional
        With the columns to carry, for their types; it may be empty.
    beside : mapping of name to PointEngine or ModelClassifier, optional
        As for `Engine.predict_survey`.
    **options
        ``n_samples``, ``ladder``, ``seed`` and ``modes`` as for `Engine.predict_survey`.
    """
    import pyarrow as pa

    model, made_by, reading = engine.surveyed(columns, tuple(carry), **options)
    if like is None:
        fields = [pa.field(name, pa.float64()) for name in reading.carry]
    elif hasattr(like, "map_partitions"):
        fields = [pa.field(name, _arrow_type(like.dtypes[name])) for name in reading.carry]
    else:
        schema = arrow_of_frame(like).schema
        fields = [schema.field(name) for name in reading.carry]
    others = Beside.of(beside)
    return FrameFunction(model, made_by, reading, carried_fields(fields), others)
