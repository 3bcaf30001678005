"""Many rows at once.

On PostgreSQL new rows travel by COPY, which costs both sides half of what an INSERT does, for one row as for a thousand. Changes
travel as one array per column and are spread by ``unnest``: one statement, parsed, bound and executed once, whatever the number of rows,
where a statement per row costs the database more than the row does. SQLite gets a statement per row.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import asyncpg
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    FromClause,
    Insert,
    Integer,
    String,
    Table,
    Text,
    TypeDecorator,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import Update
from sqlalchemy.types import TypeEngine

from hub.fhir import decimals

Row = Mapping[str, Any]


class JsonText(str):
    """A JSON column's value that is text already: it is stored as it stands."""

    __slots__ = ()


def dumps(value: Any) -> str:
    """JSON as the store writes it."""
    return value if isinstance(value, JsonText) else decimals.dumps(value).decode()


def is_postgresql(connection: AsyncConnection) -> bool:
    """Whether it has arrays, advisory locks and row locks; otherwise it is SQLite."""
    return connection.dialect.name == "postgresql"


def among(of: Any, values: Iterable[str], connection: AsyncConnection) -> ColumnElement[bool]:
    """``of IN values``; as one array parameter on PostgreSQL, so that every batch is the same statement."""
    found = sorted(set(values))
    if is_postgresql(connection):
        return of == any_(literal(found, ARRAY(String)))  # type: ignore[no-any-return]
    return of.in_(found)  # type: ignore[no-any-return]


def among_pairs(
    of: tuple[ColumnElement[str], ColumnElement[int]],
    pairs: Iterable[tuple[str, int]],
    connection: AsyncConnection,
) -> ColumnElement[bool]:
    """`among` for a text and a number together."""
    found = sorted(set(pairs))
    if not is_postgresql(connection):
        return tuple_(*of).in_(found)
    texts = literal([text for text, _ in found], ARRAY(String))
    numbers = literal([number for _, number in found], ARRAY(Integer))
    spread = func.unnest(texts, numbers).table_valued(
        column("text", String), column("number", Integer), name="pair"
    )
    return tuple_(*of).in_(select(*spread.render_derived().c))


def numbered(
    of: ColumnElement[int], numbers: Sequence[int], connection: AsyncConnection
) -> ColumnElement[bool]:
    """`among` for numbers."""
    if is_postgresql(connection):
        return of == any_(literal(list(numbers), ARRAY(BigInteger)))
    return of.in_(numbers)


def insert_ignoring(connection: AsyncConnection, table: Any) -> Insert:
    """INSERT … ON CONFLICT DO NOTHING in the connection's dialect."""
    dialect = postgresql if is_postgresql(connection) else sqlite
    statement: Insert = dialect.insert(table).on_conflict_do_nothing()
    return statement


async def insert_rows(connection: AsyncConnection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same columns. Numbers the database gives out follow the rows' order."""
    if rows:
        names = tuple(rows[0])
        await insert_records(connection, table, names, [[row[name] for name in names] for row in rows])


async def insert_records(
    connection: AsyncConnection, table: Table, names: Sequence[str], records: Sequence[Sequence[Any]]
) -> None:
    """`insert_rows` where the rows are sequences of the values of the columns ``names``."""
    if not records:
        return
    if is_postgresql(connection):
        await _copy(connection, table, names, records)
    else:
        await connection.execute(insert(table), [dict(zip(names, each, strict=True)) for each in records])


async def _copy(
    connection: AsyncConnection, table: Table, names: Sequence[str], records: Sequence[Sequence[Any]]
) -> None:
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if not driver.is_in_transaction():
        # SQLAlchemy begins a transaction with the first statement that it sees, and it does not see a COPY.
        await connection.execute(select(1))
    json = [at for at, name in enumerate(names) if isinstance(table.c[name].type, JSON)]
    if json:
        records = [_with_texts(each, json) for each in records]
    try:
        await driver.copy_records_to_table(table.name, records=records, columns=list(names))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # As if SQLAlchemy had sent it: a lost connection is not used again, and nothing of the rows is said.
        if driver.is_closed():
            await connection.invalidate()
        kind = IntegrityError if isinstance(error, asyncpg.IntegrityConstraintViolationError) else DBAPIError
        raise kind(f"COPY {table.name}", None, error) from error


def _with_texts(record: Sequence[Any], json: Iterable[int]) -> Sequence[Any]:
    """JSON travels as text: the values at these places."""
    told = list(record)
    for at in json:
        if told[at] is not None:
            told[at] = dumps(told[at])
    return told


async def update_rows(
    connection: AsyncConnection,
    table: Table,
    key: Sequence[str],
    rows: Sequence[Row],
    *,
    where: ColumnElement[bool] | None = None,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Sequence[Any]:
    """Set the other columns of the rows that have these values in the columns ``key``, which name one row each.

    ``where``: only rows of which this is true as well. Returns ``returning`` of those that were updated.
    """
    if not rows:
        return []
    names = tuple(rows[0])
    if is_postgresql(connection):
        statement = _update(table, tuple(key), names, where, tuple(returning))
        done = await connection.execute(statement, _arrays(table, names, rows))
        return done.all() if returning else []
    statement = _update_one(table, tuple(key), names, where, tuple(returning))
    bound = [{f"_{name}": value for name, value in row.items()} for row in rows]
    if not returning:
        await connection.execute(statement, bound)
        return []
    return [found for each in bound for found in (await connection.execute(statement, each)).all()]


@lru_cache(maxsize=64)
def _update(
    table: Table,
    key: tuple[str, ...],
    names: tuple[str, ...],
    where: ColumnElement[bool] | None,
    returning: tuple[ColumnElement[Any], ...],
) -> Update:
    spread = _spread(table, names)
    its = [table.c[name] == spread.c[name] for name in key]
    values = {name: _value(table, spread, name) for name in names if name not in key}
    return _told(update(table).where(*its).values(values), where, returning)


@lru_cache(maxsize=64)
def _update_one(
    table: Table,
    key: tuple[str, ...],
    names: tuple[str, ...],
    where: ColumnElement[bool] | None,
    returning: tuple[ColumnElement[Any], ...],
) -> Update:
    its = [table.c[name] == bindparam(f"_{name}") for name in key]
    values: dict[str, Any] = {name: bindparam(f"_{name}") for name in names if name not in key}
    return _told(update(table).where(*its).values(values), where, returning)


def _told(
    statement: Update, where: ColumnElement[bool] | None, returning: tuple[ColumnElement[Any], ...]
) -> Update:
    narrowed = statement if where is None else statement.where(where)
    return narrowed.returning(*returning) if returning else narrowed


def _spread(table: Table, names: tuple[str, ...]) -> FromClause:
    """One array per column as a table."""
    types = {name: _wire(table.c[name].type) for name in names}
    arrays = (bindparam(_array(name), type_=ARRAY(type_)) for name, type_ in types.items())
    columns = (column(name, type_) for name, type_ in types.items())
    return func.unnest(*arrays).table_valued(*columns, name="row").render_derived()


def _array(name: str) -> str:
    """A parameter's name; SQLAlchemy keeps the columns' own names for itself."""
    return f"{name}_"


def _value(table: Table, spread: FromClause, name: str) -> ColumnElement[Any]:
    is_json = isinstance(table.c[name].type, JSON)
    return cast(spread.c[name], JSON) if is_json else spread.c[name]


def _wire(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of an array's elements: JSON travels as text, lengths do not matter on the way, and what a decorator does
    to a value it does for SQLite.
    """
    if isinstance(type_, TypeDecorator):
        return type_.impl_instance
    return Text() if isinstance(type_, JSON | String) else type_


def _arrays(table: Table, names: tuple[str, ...], rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Each column's values in the order of the rows. A column without any travels empty: ``unnest`` fills up with NULL what is
    shorter than others, and asyncpg looks at every element twice. The first column says how many rows there are.
    """
    arrays: dict[str, list[Any]] = {}
    for name in names:
        values = [row[name] for row in rows]
        if name != names[0] and all(value is None for value in values):
            values = []
        elif isinstance(table.c[name].type, JSON):
            values = [None if value is None else dumps(value) for value in values]
        arrays[_array(name)] = values
    return arrays
