"""PostgreSQL tells of each deployment that a transaction has changed, whichever instance's it was."""

from __future__ import annotations

from typing import Final

from headrace.inference.use_cases.route import Router
from headrace.postgres import Pool
from headrace.postgres.listening import listen

CHANNEL: Final = "headrace_inference"


async def tell_of_changes(pool: Pool, router: Router) -> None:
    """Tell the router, until cancelled."""
    await listen(
        pool,
        CHANNEL,
        lambda change: router.changed(change["deployment"]),
        begun=router.told,
        lost=router.not_told,
    )
