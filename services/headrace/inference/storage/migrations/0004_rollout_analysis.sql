-- headrace.inference.domain.analysis.Analysis as JSON; null: the default.
ALTER TABLE deployments ADD COLUMN analysis jsonb;

ALTER TABLE rollouts
    ADD COLUMN paused boolean NOT NULL DEFAULT false,
    -- The last Judgement as JSON.
    ADD COLUMN judgement jsonb,
    -- Of each version of the step: when its answers began to count, and how many there had been by then.
    ADD COLUMN baselines jsonb NOT NULL DEFAULT '{}';
