"""Which topics are read beside the samples topic: those that datasets name, once they are there."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer

from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.use_cases.ports import Catalogue

logger = logging.getLogger(__name__)


class Feeds:
    """Calling it looks again. A topic that is not there is not asked for: some brokers would create it."""

    def __init__(self, catalogue: Catalogue, consumer: AIOKafkaConsumer) -> None:
        """`consumer` is started."""
        self._catalogue = catalogue
        self._consumer = consumer
        self._seen: set[str] = set()
        self._missing: set[str] = set()

    async def __call__(self) -> Mapping[str, Feed]:
        """The feeds by topic. Raises whatever the database or the broker raises."""
        feeds = {feed.source.topic: feed for feed in await self._catalogue.feeds()}
        if not feeds.keys() <= self._seen:
            self._seen = await self._consumer.topics()
        missing = feeds.keys() - self._seen
        for topic in sorted(missing - self._missing):
            logger.warning(
                "dataset %s takes the topic %s, which is not there; it is read as soon as it is",
                feeds[topic].dataset,
                topic,
            )
        self._missing = missing
        return {topic: feed for topic, feed in feeds.items() if topic in self._seen}
