-- How a deployment's versions are to be served, and how those that are loaded are; {} are the defaults.
ALTER TABLE deployments
    ADD COLUMN serving jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN served jsonb NOT NULL DEFAULT '{}';
