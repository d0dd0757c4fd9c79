"""Kafka for services: CloudEvents, topics, producer, consumer loop, dead letters."""
