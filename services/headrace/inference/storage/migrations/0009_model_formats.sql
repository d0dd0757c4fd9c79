-- How a version's model file is loaded (headrace.model_formats); earlier releases had ONNX alone.
ALTER TABLE served_versions ADD COLUMN format text NOT NULL DEFAULT 'ONNX';
