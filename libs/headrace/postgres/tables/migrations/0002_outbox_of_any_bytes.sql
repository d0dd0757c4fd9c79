-- A key that is no text (`key` is empty then). A header whose value is none is [name, value in base64, true].
ALTER TABLE outbox ADD COLUMN raw_key bytea;
