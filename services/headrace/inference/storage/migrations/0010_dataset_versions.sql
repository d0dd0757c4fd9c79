-- Which version of its dataset a version was trained on; 0 of those that were promoted before this was kept.
ALTER TABLE served_versions ADD COLUMN dataset_version bigint NOT NULL DEFAULT 0;
