-- Ended because a newer version came: its version may be rolled out again should the newer one not do.
ALTER TABLE rollouts ADD COLUMN superseded boolean NOT NULL DEFAULT false;
