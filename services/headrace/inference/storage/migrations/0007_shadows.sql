-- headrace.inference.domain.trials: Shadow and Audience as JSON; null: none.
ALTER TABLE deployments
    ADD COLUMN shadow jsonb,
    ADD COLUMN sticky_header text NOT NULL DEFAULT '',
    ADD COLUMN audience jsonb;

ALTER TABLE rollouts
    DROP CONSTRAINT rollouts_state_check,
    ADD CONSTRAINT rollouts_state_check
        CHECK (state IN ('LOADING', 'SHADOWING', 'PROGRESSING', 'SUCCEEDED', 'ROLLED_BACK', 'FAILED'));

ALTER TABLE predictions
    -- Nobody got this answer.
    ADD COLUMN shadow boolean NOT NULL DEFAULT false,
    -- The same of a request's answer and of its shadow's; '' of requests that one version was asked.
    ADD COLUMN mirror_id text NOT NULL DEFAULT '';
CREATE INDEX predictions_mirrored ON predictions (deployment, time) WHERE mirror_id <> '';
