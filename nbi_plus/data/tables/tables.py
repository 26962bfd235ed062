"""Tables: astropy, pandas, nested-pandas and pyarrow tables as columns of numpy arrays.

None of these libraries is imported for its tables: who has a table has imported its library.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nbi_plus.data.tables.columns import NOTE, Column, Table, coded, column, noted
from nbi_plus.data.tables.surveys import find_roles

if TYPE_CHECKING:
    import astropy.table
    import pandas
    import pyarrow

_LOG = logging.getLogger("nbi_plus")
_LABELS = ("LABEL", "OBJECT", "TARGETID", "SNID", "name", "id")
_DTYPES = {"f": np.float64, "i": np.int64, "u": np.uint64, "b": np.bool_, "M": "datetime64[ns]"}


def as_table(data: object) -> Table:
    """Return the table in ``data``, whatever library it is of.

    Parameters
    ----------
    data : astropy Table, pandas DataFrame, NestedFrame, pyarrow Table, mapping or structured array
        Of a mapping, single values hold for all rows.

    Returns
    -------
    Table

    Examples
    --------
    >>> as_table({"t": [0.0, 1.0], "flux": [3.0, 4.0]}).n_rows
    2
    """
    makers = {
        "nbi_plus.Table": lambda table: table,
        "pyarrow.Table": of_arrow,
        "nested_pandas.NestedFrame": _of_nested,
        "pandas.DataFrame": _of_pandas,
        "astropy.Table": of_astropy,
    }
    for kind in type(data).__mro__:
        maker = makers.get(f"{kind.__module__.split('.')[0]}.{kind.__name__}")
        if maker is not None:
            return maker(data)
    names = getattr(getattr(data, "dtype", None), "names", None)
    if isinstance(data, Mapping) or names:
        return of_arrays({name: data[name] for name in names or data})
    raise TypeError(
        "table must be an astropy, pandas, nested-pandas or pyarrow table, a dict of arrays or a "
        f"structured array, but is {type(data).__name__}. Convert it to one of them."
    )


def is_table(value: object) -> bool:
    """Say whether a value is a table of some library, a mapping of columns or a structured array.

    Examples
    --------
    >>> is_table({"t": [0.0]}), is_table(np.zeros(3))
    (True, False)
    """
    named = (getattr(value, name, None) for name in ("colnames", "column_names", "columns"))
    has_columns = any(names is not None and not callable(names) for names in named)
    structured = getattr(getattr(value, "dtype", None), "names", None) is not None
    return has_columns or structured or isinstance(value, Mapping)


def of_arrays(data: Mapping[str, ArrayLike]) -> Table:
    """Return a table of arrays by name, with or without units and masks."""
    sizes = {name: np.shape(value)[0] for name, value in data.items() if np.ndim(value)}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"table must have columns of one length, but has {sizes}. Give one value a row."
        )
    n = next(iter(sizes.values()))

    def load(names: Sequence[str]) -> dict[str, Column]:
        full = {k: data[k] if k in sizes else np.full(n, data[k]) for k in names}
        return {k: column(k, v) for k, v in full.items()}

    return Table(tuple(map(str, data)), n, load)


def of_astropy(table: astropy.table.Table, layout: Mapping[str, object] | None = None) -> Table:
    """Return an astropy Table, QTable or TimeSeries; its meta may name the object."""
    names = tuple(table.colnames)
    label = next((str(table.meta[k]) for k in _LABELS if table.meta.get(k)), None)
    return Table(
        names,
        len(table),
        lambda wanted: {name: column(name, table[name]) for name in wanted},
        label=label,
        layout=layout or {},
        about=dict(table.meta),
    )


def _of_pandas(frame: pandas.DataFrame) -> Table:
    """Return a DataFrame; named levels of its index count as columns."""
    levels = [n for n in frame.index.names if n is not None and n not in frame.columns]
    index = {k: frame.index.get_level_values(k).to_series() for k in levels}

    def load(names: Sequence[str]) -> dict[str, Column]:
        return {k: _of_series(k, index[k] if k in index else frame[k]) for k in names}

    return Table((*map(str, frame.columns), *levels), len(frame), load)


def _of_series(name: str, series: pandas.Series) -> Column:
    missing = series.isna().to_numpy()
    kind = getattr(series.dtype, "kind", "O")
    if kind not in "OSU":
        blank = {"na_value": np.nan if kind == "f" else 0}
        fill = blank if missing.any() and kind in "fiub" else {}
        return column(name, series.to_numpy(dtype=_DTYPES.get(kind), **fill), missing)
    try:
        codes, found = series.factorize()
    except TypeError as error:
        raise TypeError(
            f"column {name!r} must hold numbers, flags or texts, but {error}. Unfold lists with "
            "DataFrame.explode."
        ) from error
    if series.dtype == object and not {str, bytes} & set(map(type, found)):
        return column(name, series.to_numpy(dtype=object, na_value=None), missing)
    return coded(codes, np.asarray(found, object), missing)


def _of_nested(frame: pandas.DataFrame) -> Table:
    """Return a NestedFrame: light curves within rows of objects."""
    return of_arrow(arrow_of_frame(frame))


def frame_of(columns: Mapping[str, Sequence]) -> pandas.DataFrame:
    """Return a frame of columns by name."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            'frames need pandas. Install it with: pip install "pandas>=2.0"'
        ) from error
    return pd.DataFrame(columns)


def arrow_of_frame(data: object) -> pyarrow.Table | None:
    """Return a frame of pandas, nested-pandas or pyarrow as a table of arrow; None for others."""
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}
    if "pyarrow.Table" in kinds:
        return data
    if "pandas.DataFrame" not in kinds:
        return None
    arrow = _arrow()
    own = [name for name in data.index.names if name is not None and name not in data.columns]
    try:
        return arrow.Table.from_pandas(data, preserve_index=bool(own))
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise ValueError(
            f"table must have columns of one kind of values each, but {error}. Convert the column, "
            "or give the rows as dicts."
        ) from error


def _arrow() -> Any:  # noqa: ANN401 - pyarrow is optional
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "from_table of a nested table needs pyarrow. Install it with: pip install "
            '"nbi-plus[survey]"'
        ) from error
    return pyarrow


def units_of(schema: pyarrow.Schema) -> dict[str, str | None]:
    """Return the units of columns; None where none is said."""
    return {field.name: unit_of_field(field) for field in schema}


def of_arrow(table: pyarrow.Table) -> Table:
    """Return a pyarrow Table; lists within rows of objects are laid out as rows of points.

    Lists beside columns that are a light curve already are no points, and left alone.
    """
    flat, lists = _unfolded(table)
    units = units_of(table.schema)
    layout = noted((table.schema.metadata or {}).get(NOTE.encode()))
    if not lists or _is_long(flat):
        load = partial(_load_arrow, flat, units)
        return Table(tuple(flat), table.num_rows, load, layout=layout)
    lengths = [lengths_of(values) for values in lists.values()]
    if any(not np.array_equal(lengths[0], other) for other in lengths):
        raise ValueError(
            f"table must have lists of one length in each row, but {list(lists)} differ. Select "
            "the columns of one list."
        )
    if (lengths[0] == 0).any():
        _LOG.warning("%d objects without points are left out.", int((lengths[0] == 0).sum()))
    owner = np.repeat(np.arange(table.num_rows), lengths[0])
    points = {name: values.flatten() for name, values in lists.items()}
    rows = _arrow().array(owner)
    return Table(
        (*flat, *points),
        len(owner),
        lambda names: _load_arrow(
            points | {k: flat[k].take(rows) for k in names if k not in points}, units, names
        ),
        owner=owner,
    )


def _is_long(names: Iterable[str]) -> bool:
    """Say whether columns of these names have data and times."""
    try:
        find_roles(list(names), {})
    except ValueError:
        return False
    return True


def solid(values: pyarrow.ChunkedArray) -> pyarrow.Array:
    """Return a column of pyarrow as one array, its texts numbered by one dictionary."""
    return values.unify_dictionaries().combine_chunks()


def arrow_column(name: str, values: pyarrow.Array, unit: str | None = None) -> Column:
    """Return a column of pyarrow."""
    import pyarrow.types as kinds

    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    if kinds.is_null(values.type):
        return column(name, np.full(len(values), np.nan), missing, unit)
    if any(is_text(values.type) for is_text in (kinds.is_string, kinds.is_large_string)):
        values = values.dictionary_encode()
    if kinds.is_dictionary(values.type):
        gaps = np.zeros(len(values), bool) if missing is None else missing
        codes = values.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return coded(codes, np.array(values.dictionary.to_pylist(), object), gaps, unit)
    if kinds.is_decimal(values.type):
        values = values.cast("float64")
    if missing is not None and (kinds.is_integer(values.type) or kinds.is_boolean(values.type)):
        values = values.fill_null(0)  # numpy would make floats of whole numbers with gaps
    return column(name, values.to_numpy(zero_copy_only=False), missing, unit)


def _load_arrow(
    data: Mapping[str, pyarrow.Array], units: Mapping[str, str | None], names: Sequence[str]
) -> dict[str, Column]:
    return {name: arrow_column(name, data[name], units.get(name)) for name in names}


def unit_of_field(field: pyarrow.Field) -> str | None:
    """Return the unit that a field of a schema notes, if any."""
    return (field.metadata or {}).get(b"unit", b"").decode() or None


def _unfolded(table: pyarrow.Table) -> tuple[dict, dict]:
    """Return the columns of plain values and those of lists, fields of structures by their names.

    Where several structures are nested, or names meet, a field is called ``structure.field``.
    """
    flat = {name: solid(table[name]) for name in table.column_names}
    nested = {k: dict(fields_of(v)) for k, v in flat.items() if is_of_lists(v.type)}
    plain = {k: v for k, v in flat.items() if k not in nested}
    lists = {}
    for outer, fields in nested.items():
        for inner, values in fields.items():
            alone = not inner or (len(nested) == 1 and inner not in plain)
            lists[(inner or outer) if alone else f"{outer}.{inner}"] = values
    return plain, lists


def is_of_lists(kind: pyarrow.DataType) -> bool:
    """Say whether a type is a list, or a structure of lists alone."""
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return all(is_of_lists(kind.field(i).type) for i in range(kind.num_fields))
    return kinds.is_list(kind) or kinds.is_large_list(kind)


def fields_of(values: pyarrow.Array) -> Iterator[tuple[str, pyarrow.Array]]:
    """Yield lists of a list (nameless), a structure of lists, or a list of structures."""
    import pyarrow.types as kinds

    if kinds.is_struct(values.type):
        names = [values.type.field(i).name for i in range(values.type.num_fields)]
        yield from zip(names, values.flatten(), strict=True)
    elif kinds.is_struct(values.type.value_type):
        inner = values.flatten()
        offsets = np.concatenate([[0], np.cumsum(lengths_of(values))])
        make = _arrow().LargeListArray.from_arrays
        for i, part in enumerate(inner.flatten()):
            yield values.type.value_type.field(i).name, make(offsets, part)
    else:
        yield "", values


def lengths_of(values: pyarrow.Array) -> np.ndarray:
    """Return the lengths of the lists of each row, 0 where there is none."""
    return values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)


def astropy_table(columns: Mapping[str, Sequence]) -> astropy.table.QTable:
    """Return a table of columns, for people to read."""
    from astropy.table import QTable

    return QTable(dict(columns))
