"""Observations: many objects' data in one container."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.flat import FlatData, Index
from nbi_plus.data.ingest import errors_of, ingest, point_mask, report_left_out
from nbi_plus.data.joining import alike, concatenate, joint, shared_again, with_scalars
from nbi_plus.data.long_format import Wishes, report, table_acts, unstack
from nbi_plus.data.packing import (
    Categories,
    Packed,
    blank,
    check_errors,
    coordinate,
    different,
    pack,
    scalar,
)
from nbi_plus.data.rearranging import bin_points, buckets, fold, relative_to
from nbi_plus.data.stacking import stack
from nbi_plus.data.surveys.desi import read_spectra
from nbi_plus.data.surveys.kinds import (
    CURVES,
    SPECTRA,
    as_told,
    check_kind,
    numbers_of,
    spectra_acts,
)
from nbi_plus.data.surveys.points import Quality, SurveyWishes, table_of
from nbi_plus.data.tables.columns import Table
from nbi_plus.data.tables.spectra import of_spectrum, redshifts
from nbi_plus.data.tables.surveys import Names, curve_columns
from nbi_plus.data.tables.table_files import read_table, write_table
from nbi_plus.data.tables.tables import as_table

__all__ = ["Index", "Observations"]


class Observations(FlatData):
    """Data of many objects, each with its own points, errors and coordinates.

    Made by a constructor (``from_...``, `read`); indexing and slicing give Observations. What they
    hold is described in `FlatData`.
    """

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Sequence[ArrayLike] | None = None,
        x_err: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        mask: ArrayLike | Sequence[ArrayLike] | None = None,
        bad: ArrayLike | Sequence[ArrayLike] | None = None,
        scalars: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[object] | None = None,
        categories: Categories | None = None,
        units: Mapping[str, str] | None = None,
        **coords: ArrayLike | Sequence[ArrayLike],
    ) -> Observations:
        """Make Observations of arrays, on a grid or of different lengths.

        Parameters
        ----------
        x : array_like, shape (N, L) or (N, C, L), or a list of N arrays (L_i,) or (C, L_i)
            Data of N objects. A NaN, infinite or masked value (``numpy.ma``, astropy's ``Masked``)
            is masked and counted. What has a unit (``Quantity``) is converted to ``units``, and
            errors to the unit of x. None for designs, which are to be trained for: one object for
            each row of a coordinate, whose data are 0.
        x_err : array_like, shape broadcastable to x, optional
            Standard deviations, positive.
        mask, bad : array_like of bool, shape (N, L) or (N, C, L), optional
            One of them: ``mask`` is True for a real point, ``bad`` is True for one to leave out, as
            masks of numpy and astropy are. Two axes hold for all channels.
        scalars : mapping of name to array_like of shape (N,), optional
            One number per object, such as ``redshift``.
        ids : sequence, optional
            Names of the objects; 0, 1, ... when not given.
        categories : mapping of name to sequence of str, optional
            The order of categories, as ``{"band": ["g", "r"]}``; default: sorted by name.
        units : mapping of str, optional
            Units wanted of ``x``, coordinates and scalars, as ``{"t": "d", "x": "mJy"}``.
        **coords : array_like, shape (L,) or (N, L), or a list of N arrays (L_i,)
            Coordinates such as ``t``, ``wavelength`` or ``band``; texts are categories, booleans
            flags. Give points in the order of time: networks but the transformer see it.

        Returns
        -------
        Observations

        Examples
        --------
        >>> obs = Observations.from_arrays([[1.0, 2.0], [3.0, float("nan")]], 0.1, t=[0.0, 1.0])
        >>> len(obs), obs.n_masked.tolist()
        (2, [0, 1])
        """
        wanted = dict(units or {})
        x = blank(coords) if x is None else x
        x, wanted["x"] = ingest("x", x, wanted.get("x"))
        x_err = None if x_err is None else errors_of(x_err, wanted["x"])
        bare = {}
        for name, value in coords.items():
            bare[name], wanted[name] = ingest(name, value, wanted.get(name))
        numbered = {}
        for name, value in (scalars or {}).items():
            numbered[name], wanted[name] = ingest(name, value, wanted.get(name))
        packed = pack(x, x_err, point_mask(mask, bad), bare)
        check_errors(packed)
        known = {k: v for k, v in wanted.items() if v is not None}
        made = cls.from_flat(packed, numbered, ids, categories, known)
        report_left_out(made.valid)
        return made

    @classmethod
    def from_flat(
        cls,
        packed: Packed,
        scalars: Mapping[str, ArrayLike],
        ids: Sequence[object] | None,
        categories: Categories | None = None,
        units: Mapping[str, str] | None = None,
        *,
        coded: bool = False,
    ) -> Observations:
        """Make Observations of points laid out object after object; what is not finite is masked.

        A point whose error is not positive counts as not finite. Categories may be ``coded``
        already.
        """
        n = len(packed.lengths)
        offsets = np.concatenate([[0], np.cumsum(packed.lengths)])
        finite = np.isfinite(packed.x)
        if packed.x_err is not None:
            finite &= np.isfinite(packed.x_err) & (packed.x_err > 0)
        keep = packed.mask & finite
        lost = np.concatenate([[0], np.cumsum((packed.mask & ~finite).sum(0))])
        known = categories or {}
        named = {k: coordinate(k, v, known.get(k), coded=coded) for k, v in packed.points.items()}
        return cls(
            values=np.where(keep, packed.x, 0.0),
            errors=None if packed.x_err is None else np.where(keep, packed.x_err, 1.0),
            valid=keep,
            offsets=offsets,
            points={k: v for k, (v, _) in named.items()},
            scalars={k: scalar(k, v, n) for k, v in scalars.items()},
            ids=different(ids, n),
            shared_grid=packed.shared_grid,
            n_masked=lost[offsets[1:]] - lost[offsets[:-1]],
            categories={k: names for k, (_, names) in named.items() if names is not None},
            units=dict(units or {}),
        )

    @classmethod
    def from_table(
        cls,
        table: object,
        *,
        scalars: Sequence[str] | Mapping[str, str] = (),
        categories: Categories | None = None,
        units: Mapping[str, str] | None = None,
        zero_point: float | None = None,
        zp: str | bool | None = None,
        time: str | None = None,
        duplicates: str | None = None,
        **columns: Names,
    ) -> Observations:
        """Make Observations of a table in the long format: one row for each point.

        Rows may come in any order: objects keep the order in which they appear, and their points
        are sorted by time. Data that are not finite and errors that are not positive are masked,
        rows without time or band are left out, and both are counted in ``n_masked``.

        Parameters
        ----------
        table : astropy Table, pandas DataFrame, NestedFrame, pyarrow Table, dict or record array
            Lists within the rows of nested tables are unfolded.
        scalars : sequence of str, or mapping of name to column, optional
            Columns of numbers that are constant within each object.
        categories : mapping of name to sequence of str, optional
            The order of categories, as ``{"band": ["g", "r"]}``; default: sorted by name.
        units : mapping of str, optional
            Units wanted, as ``{"t": "d", "x": "mJy"}``; errors get the unit of x.
        zero_point : float, optional
            The magnitude of flux 1: x holds magnitudes, to be made fluxes, or fluxes that have a
            column of zero points, to be scaled to this one.
        zp : str or False, optional
            The column of zero points, by default guessed. Fluxes whose zero points differ are
            scaled to one: `zero_point`, else the most common; without one they are masked. False
            leaves them as they are.
        time : {"mjd", "jd", "btjd", "bkjd"}, optional
            What times are to count from. By default they keep their numbers: dates and texts of a
            ``Time`` are MJD. Constants are added, which needs a ``Time``, dates, or a column called
            such as ``mjd`` or ``hjd``.
        duplicates : {"merge", "keep", "refuse"}, optional
            What becomes of points that repeat another: same object, time, wavelength, band,
            instrument, data and error. By default they are merged and counted in
            ``n_duplicates``; only of files that `write` made they are kept.
        **columns : str
            The columns of ``id``, ``t``, ``x``, ``x_err``, ``band``, ``upper_limit``,
            ``wavelength`` and, under any other name, further coordinates. By default (None) the
            first seven are guessed from the names that surveys use; False says that there is none.
            ``x`` and ``x_err`` may be lists, one column for each channel. A table without ``id`` is
            one object.

        Returns
        -------
        Observations

        Examples
        --------
        >>> table = {"oid": [7, 5, 7], "mjd": [2.0, 1.0, 0.0], "mag": [3.0, 4.0, 5.0]}
        >>> obs = Observations.from_table(table)
        >>> obs.ids.tolist(), obs[0].x.tolist()
        ([7, 5], [[[5.0, 3.0]]])
        """
        own = scalars if isinstance(scalars, Mapping) else {name: name for name in scalars}
        wishes = Wishes(own, categories or {}, units or {}, zero_point, zp, time, duplicates)
        opened = as_table(table)
        obs, n_dropped, clock = cls._from_columns(opened, columns, wishes)
        report(opened.n_rows, n_dropped, obs, clock)
        return obs

    @classmethod
    def _from_columns(
        cls, table: Table, columns: Mapping[str, Names], wishes: Wishes
    ) -> tuple[Observations, int, str | None]:
        """Return what a table holds, how many rows were dropped, and the clock of its times."""
        known = table.layout
        given = {**known.get("columns", {}), **{k: v for k, v in columns.items() if v is not None}}
        wishes = wishes._replace(
            scalars={**{k: k for k in known.get("scalars", ())}, **wishes.scalars},
            categories={**known.get("categories", {}), **wishes.categories},
        )
        found = unstack(table, given, wishes)
        obs = cls.from_flat(
            found.packed, found.scalars, found.ids, found.categories, found.units, coded=True
        )
        acts = table_acts(table, found, int(obs.n_masked.sum()))
        obs = replace(obs, n_masked=obs.n_masked + found.dropped, origins=found.origins,
                      n_duplicates=found.repeated, ingest=acts)  # fmt: skip
        obs = shared_again(obs) if known.get("shared_grid") else obs
        return obs, int(found.dropped.sum()), found.clock

    @classmethod
    def from_survey(
        cls,
        kind: str,
        source: Any,  # noqa: ANN401 - whatever surveys hand out
        *,
        nested: str | Sequence[str] | None = None,
        zero_point: float | None = None,
        limits: float | bool | None = None,
        quality: Quality = None,
        scalars: Sequence[str] | Mapping[str, str] | None = None,
        **options: str | None,
    ) -> Observations:
        """Make Observations of what a survey hands out, in its own schema.

        `ingest` is a table of what was done to it, act by act; printed, it is read by people.

        Parameters
        ----------
        kind : {"ztf-alert", "rubin-alert", "elasticc", "ztf-dr", "snana", "sncosmo", "desi"}
        source : path, glob, folder, dict, frame, or a list of these
            Alerts: decoded packets (dicts), files of Avro, JSON or Parquet, frames of pandas,
            nested-pandas or pyarrow. Light curves of a data release and of sncosmo: tables and
            their files. SNANA: HEAD and PHOT files, text files, or a table. DESI: coadds, or
            records with ``wavelength``, ``flux`` and ``ivar``.
        nested : str or sequence of str, optional
            The list of an alert to read instead of the history of detections, as
            ``"prvDiaForcedSources"`` or ``"fp_hists"``; of several, the first that has an image
            counts. The triggering detection is always read, where no such list has its image.
        zero_point : float, optional
            The magnitude of flux 1. By default that of the survey: 23.9 for alerts of ZTF, 31.4
            (nJy) of Rubin, 27.5 of ELAsTiCC and SNANA, the most common one of sncosmo; data
            releases of ZTF stay in magnitudes.
        limits : float or bool, optional
            Non-detections are upper limits of five sigma, flagged in ``upper_limit``. A number n
            makes limits of n sigma of these and of all that was measured below n sigma; False
            leaves non-detections out.
        quality : mapping of flag to bits, or False, optional
            Points to leave out beside those the survey calls unusable, as ``{"catflags": 1}``;
            True stands for any bit. False leaves none out.
        scalars : sequence of str, or mapping of name to field, optional
            Numbers of the objects, as ``{"redshift": "diaObject.z_final"}``; of several alerts the
            last counts.
        **options
            ``time`` and ``duplicates``, as in `from_table`.

        Returns
        -------
        Observations

        Examples
        --------
        >>> row = {"objectid": 7, "filterid": 2, "hmjd": [58000.0, 58001.0], "mag": [18.0, 18.1],
        ...        "magerr": [0.1, 0.1], "catflags": [0, 32768]}
        >>> obs = Observations.from_survey("ztf-dr", row)
        >>> obs.x.tolist(), obs.ingest["quality"]
        ([[[18.0]]], 1)
        """
        check_kind(kind, options)
        asked = SurveyWishes(nested, zero_point, limits, quality, scalars).checked()
        if kind == SPECTRA:
            return cls._from_spectra(source, asked, **options)
        curves = CURVES[kind](source, asked)
        table, roles = table_of(curves, limits)
        wishes = Wishes({}, {"band": curves.bands} if curves.bands else {}, {}, curves.zero_point,
                        "zp" if curves.zero_point is not None else False, **options)  # fmt: skip
        obs, n_dropped, clock = cls._from_columns(table, roles, wishes)
        report(table.n_rows, n_dropped, obs, clock)
        told = replace(obs, ingest=as_told(curves, obs))
        return with_scalars(told, numbers_of(curves, told.ids), {})

    @classmethod
    def _from_spectra(
        cls, source: Any, wishes: SurveyWishes, *, duplicates: str | None = None,  # noqa: ANN401
    ) -> Observations:  # fmt: skip
        """Return spectra of DESI, of one grid of wavelengths or several."""
        parts = read_spectra(source, wishes)
        made = [
            replace(
                cls.from_arrays(part.flux, part.error, mask=part.mask, ids=part.ids,
                                scalars=part.scalars, wavelength=part.wavelength,
                                units={"x": part.unit, "wavelength": "Angstrom"}),
                ingest=spectra_acts(part, duplicates),
            )
            for part in parts
        ]  # fmt: skip
        return concatenate(made)

    @classmethod
    def read(cls, path: Path | str, **keywords: Any) -> Observations:  # noqa: ANN401 - passed on
        """Read a table in the long format from a file; only the columns needed are loaded.

        Parameters
        ----------
        path : path-like
            Parquet, FITS (its first binary table), HDF5, CSV or ECSV, by its suffix.
        **keywords
            See `from_table`. Files made by `write` need none, but for the scalars of a CSV.

        Returns
        -------
        Observations
            One object of a table without ids is called as the file says, or as the file.
        """
        return cls.from_table(read_table(path), **keywords)

    def write(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write all points to a file, one row each, as `read` takes them back.

        Masked points are written as NaN, and bands as texts; channels are columns ``x_0``, ....
        CSV keeps neither units nor which columns are scalars.

        Parameters
        ----------
        path : path-like
            Its suffix says the format: .parquet, .fits, .h5, .csv or .ecsv.
        overwrite : bool
            Whether an existing file is replaced.
        """
        write_table(path, *stack(self), overwrite=overwrite)

    @classmethod
    def from_lightkurve(
        cls,
        curves: Any,  # noqa: ANN401 - an object of lightkurve, or several
        *,
        scalars: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[object] | None = None,
        units: Mapping[str, str] | None = None,
        time: str | None = None,
        duplicates: str | None = None,
    ) -> Observations:
        """Make Observations of a lightkurve ``LightCurve``, or of a collection or list of them.

        Parameters
        ----------
        curves : LightCurve or iterable of LightCurve
            Read are the columns ``time``, ``flux`` and ``flux_err``, and the ``LABEL``, ``OBJECT``
            or ``TARGETID`` of ``meta``, which names the object.
        scalars : mapping of name to array_like of shape (N,), optional
            One number per object.
        ids : sequence, optional
            Other names; needed where two curves are of one object.
        units : mapping of str, optional
            Units wanted, as ``{"x": "electron / s"}``.
        time : {"mjd", "jd", "btjd", "bkjd"}, optional
            What times are to count from. By default they keep the numbers of their format, which
            must then be the same for all.
        duplicates : {"merge", "keep", "refuse"}, optional
            See `from_table`.

        Returns
        -------
        Observations
        """
        one = getattr(curves, "flux", None) is not None
        tables = [as_table(curve) for curve in ([curves] if one else curves)]
        names = ids if ids is not None else [t.label or i for i, t in enumerate(tables)]
        numbered, wanted = scalars or {}, units or {}
        of_points = {k: v for k, v in wanted.items() if k not in numbered}
        wishes = Wishes({}, {}, of_points, None, zp=False, time=time, duplicates=duplicates)
        parts = [cls._from_columns(table, curve_columns(table), wishes) for table in tables]
        clocks = sorted({str(clock) for _, _, clock in parts})
        if len(clocks) > 1:
            raise ValueError(
                f"curves must count their times alike, but are of the formats {clocks}. Give for "
                'example time="mjd".'
            )
        named = zip(parts, names, strict=True)
        made = concatenate([replace(part, ids=np.array([name])) for (part, *_), name in named])
        report(sum(table.n_rows for table in tables), sum(n for _, n, _ in parts), made,
               parts[0][2])  # fmt: skip
        return with_scalars(made, numbered, wanted)

    @classmethod
    def from_spectrum1d(
        cls,
        spectra: Any,  # noqa: ANN401 - an object of specutils, or several
        *,
        scalars: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[object] | None = None,
        units: Mapping[str, str] | None = None,
    ) -> Observations:
        """Make Observations of a specutils ``Spectrum`` (``Spectrum1D``), or of a list of them.

        Parameters
        ----------
        spectra : Spectrum or iterable of Spectrum
            Read are ``flux``, ``uncertainty``, ``mask`` and ``spectral_axis``, which becomes the
            ascending coordinate ``wavelength``; and ``redshift``, which becomes a scalar where any
            is other than 0. Fluxes (n, L) are n objects.
        scalars : mapping of name to array_like of shape (N,), optional
            One number per object; a ``redshift`` given here wins.
        ids : sequence, optional
            Names of the objects; 0, 1, ... when not given.
        units : mapping of str, optional
            Units wanted, as ``{"wavelength": "um"}``.

        Returns
        -------
        Observations
        """
        listed = [spectra] if getattr(spectra, "spectral_axis", None) is not None else spectra
        parts = [of_spectrum(one) for one in listed]
        counts = np.cumsum([0, *(len(part.flux) for part in parts)])
        made = [
            cls.from_arrays(part.flux, part.error, mask=part.mask, units=units,
                            ids=np.arange(start, stop), wavelength=part.wavelength)
            for part, start, stop in zip(parts, counts, counts[1:], strict=False)
        ]  # fmt: skip
        joined, given = concatenate(made), scalars or {}
        own = {} if "redshift" in given else redshifts(parts)
        joined = with_scalars(joined, own | dict(given), units or {})
        return joined if ids is None else replace(joined, ids=different(ids, len(joined)))

    @staticmethod
    def concatenate(parts: Iterable[Observations]) -> Observations:
        """Return the objects of all parts, in the units of the first.

        Channels, coordinates and scalars must be the same, and ids different; categories are
        merged by name. What has no unit is taken to be in the unit that another part has.
        """
        return concatenate(list(parts))

    @staticmethod
    def joint(parts: Mapping[str, Observations]) -> Observations:
        """Return data sets of the same objects, matched by id, as the channels of one.

        The points of an object follow each other part after part; a channel is real only at the
        points of its own part. A coordinate that only some parts have is filled in for the others
        with the object's last value (0 where it has none): mask and channel say that it is idle.
        The unit of x is kept where all parts have the same.
        """
        return joint(parts)

    def like(self, categories: Categories, units: Mapping[str, str | None]) -> Observations:
        """Return the same data in other units, and with the codes of other lists of categories.

        Parameters
        ----------
        categories : mapping of name to sequence of str
            Of coordinates; each must name all that is found here.
        units : mapping of str
            Wanted of ``x``, coordinates and scalars. What has no unit is taken to be in it; None
            refuses what has one.
        """
        return alike(self, categories, units)

    def fold(self, period: ArrayLike | str, epoch: ArrayLike = 0.0) -> Observations:
        """Return the points by ``phase`` in [0, 1), a new coordinate; ``t`` stays.

        Parameters
        ----------
        period : float, array_like of shape (N,), or the name of a scalar
            In the unit of the times.
        epoch : float or array_like of shape (N,)
            An absolute time of phase 0, whatever the times were made relative to.
        """
        return fold(self, period, epoch)

    def bin(self, dt: float) -> Observations:
        """Return means, weighted by errors, over bins of width ``dt`` beginning at multiples of it.

        Objects, categories and flags are kept apart; an upper limit stays as it is, and masked
        points are left out. Times are means, too. Without errors, the means are plain.
        """
        return bin_points(self, dt)

    def relative_to(self, origin: str | ArrayLike) -> Observations:
        """Return times that count from an origin of each object, which ``origins`` notes.

        Parameters
        ----------
        origin : {"first", "median", "peak"} or array_like of shape (N,)
            The first, median or brightest valid point (of those with a signal to noise of 3, if
            there are any), or absolute times: ``relative_to(0.0)`` undoes all others.
        """
        return relative_to(self, origin)

    def select_points(self, keep: ArrayLike) -> Observations:
        """Return the points for which ``keep``, flags of shape (n_points,), is true."""
        flags = np.asarray(keep)
        if flags.dtype != bool or flags.shape != self.valid.shape[1:]:
            raise ValueError(
                f"keep must be {self.valid.shape[1]} flags, one for each point, but has type "
                f"{flags.dtype} and shape {flags.shape}."
            )
        return self.take_points(np.flatnonzero(flags))

    def buckets(self, max_points: int) -> Iterator[NDArray[np.int64]]:
        """Yield indices of objects of like lengths, longest first, for padding to waste little.

        Their number times the longest is at most ``max_points``, unless one object alone has more.
        """
        return buckets(self.lengths, max_points)
