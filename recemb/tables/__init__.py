"""Ids to vectors: table specifications, storage and the lookup engine."""

from recemb.tables.full import full_tables
from recemb.tables.method import Budget, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.pretrained import from_pretrained
from recemb.tables.spec import ANY_ID, TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables

__all__ = [
    "ANY_ID",
    "Budget",
    "Method",
    "Plan",
    "Storage",
    "TableOptimizer",
    "TableSpec",
    "Tables",
    "from_pretrained",
    "full_tables",
]
