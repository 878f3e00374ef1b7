"""Reader of data sets of the Hugging Face hub, or of a local folder in a form that its library knows. Needs `tampu[datasets]`."""

from collections.abc import Iterator

from resources.errors import TampuError
from resources.readers.files import Fields
from resources.readers.rows import Read


def hub_dataset(dataset: str, name: str | None, split: str, revision: str | None, fields: Fields) -> Iterator[Read]:
    """The rows of one split, streamed. Without an id field the id is `<split>:<row>`, counted from 1.

    TampuError if the library is missing, the data set cannot be had, or a field is not there.
    """
    try:
        import datasets
    except ImportError:
        raise TampuError(f"the data set {dataset!r} is read by the package datasets: run `pip install 'tampu[datasets]'`") from None
    line = 0
    try:
        rows = datasets.load_dataset(dataset, name, split=split, revision=revision, streaming=True)
        columns = rows.column_names
        records = iter(rows)
    except Exception as error:
        raise _unreadable(dataset, name, split, line, error) from error
    if columns is not None and (missing := [field for field in fields.names if field not in columns]):
        raise TampuError(f"the data set {dataset!r} has no column {missing[0]!r}; it has {', '.join(columns)}")
    while True:
        try:
            record = next(records, None)
        except Exception as error:
            raise _unreadable(dataset, name, split, line, error) from error
        if record is None:
            return
        line += 1
        yield fields.row(split, line, record)


def _unreadable(dataset: str, name: str | None, split: str, line: int, error: Exception) -> TampuError:
    """The library raises errors of its own, of the hub's client, of fsspec and of the network."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return TampuError(f"the data set {dataset!r} (configuration {name!r}, split {split!r}) cannot be read after {line} rows: {first}")
