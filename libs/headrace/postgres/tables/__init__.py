"""The tables that the library itself keeps in each schema: outbox and inbox."""
