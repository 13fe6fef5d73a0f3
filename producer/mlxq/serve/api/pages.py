"""OpenAI's lists: some objects, and whether more follow behind the last one."""

from __future__ import annotations

from typing import Any

from mlxq.serve.store.database import Page
from mlxq.serve.store.records import BatchRecord, FileRecord


def shown_page(page: Page[FileRecord] | Page[BatchRecord]) -> dict[str, Any]:
    records = page.records
    return {
        "object": "list",
        "data": [record.shown() for record in records],
        "first_id": records[0].id if records else None,
        "last_id": records[-1].id if records else None,
        "has_more": page.has_more,
    }
