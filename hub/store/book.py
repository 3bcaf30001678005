"""The book as it is read: every audit entry, sealed or not sealed yet, once."""

from sqlalchemy import BigInteger, Subquery, literal, select, union_all

from hub.store.tables import audit_entry, audit_pending

FIELDS = tuple(audit_pending.c.keys())
"""What an entry says, its number first."""


def whole() -> Subquery:
    """All entries with ``leaf_index``, which is NULL where an entry is not sealed yet.

    One statement sees each entry once: what is sealed in the meantime is still where it was for it.
    """
    pending = select(literal(None, BigInteger).label("leaf_index"), *audit_pending.c)
    sealed = select(audit_entry.c.leaf_index, *(audit_entry.c[name] for name in FIELDS))
    return union_all(pending, sealed).subquery("book")
