"""Every span name, attribute key and metric name, in one place, one section for each owner.

Names follow OpenTelemetry's semantic conventions where they have one; our own live under `headrace.`.
Names that end in a space are prefixes: "publish " + topic.
"""

from __future__ import annotations

from typing import Final

# --- OpenTelemetry's semantic conventions that we set by hand -----------------------------------

SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_VERSION: Final = "service.version"
SERVICE_NAMESPACE: Final = "service.namespace"

SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_GRPC_STATUS_CODE: Final = "rpc.grpc.status_code"

DB_SYSTEM: Final = "db.system"
DB_SYSTEM_NAME: Final = "db.system.name"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_PARTITION: Final = "messaging.destination.partition.id"
MESSAGING_CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_KAFKA_OFFSET: Final = "messaging.kafka.offset"
MESSAGING_BATCH_COUNT: Final = "messaging.batch.message_count"

# --- Things of the platform, on any service's spans ----------------------------------------------

SERVICE_PREFIX: Final = "headrace-"

DATASET: Final = "headrace.dataset"
DATASET_VERSION: Final = "headrace.dataset_version"
PIPELINE: Final = "headrace.pipeline"
JOB: Final = "headrace.job"
RUN: Final = "headrace.run"
ATTEMPT: Final = "headrace.attempt"
NODE: Final = "headrace.node"
MODEL: Final = "headrace.model"
MODEL_VERSION: Final = "headrace.model_version"
DEPLOYMENT: Final = "headrace.deployment"
ROLLOUT: Final = "headrace.rollout"
PREDICTION_ID: Final = "headrace.prediction_id"
ERROR_REASON: Final = "headrace.error.reason"

# --- headrace.telemetry ----------------------------------------------------------------------------

METRIC_SPANS: Final = "headrace_telemetry_spans_total"

# --- headrace.rpc ------------------------------------------------------------------------------------

METRIC_RPC_HANDLED: Final = "headrace_rpc_server_handled_total"
METRIC_RPC_SECONDS: Final = "headrace_rpc_server_seconds"

# --- headrace.messaging ------------------------------------------------------------------------------

SPAN_PUBLISH: Final = "publish "
SPAN_PROCESS: Final = "process "

METRIC_MESSAGING_HANDLED: Final = "headrace_messaging_handled_events_total"
METRIC_MESSAGING_RETRIES: Final = "headrace_messaging_retries_total"
METRIC_MESSAGING_DEAD_LETTERS: Final = "headrace_messaging_dead_letters_total"
METRIC_MESSAGING_RELAYED: Final = "headrace_messaging_relayed_events_total"

# --- headrace.ingestion ------------------------------------------------------------------------------

ROWS: Final = "headrace.rows"
ROWS_STORED: Final = "headrace.rows_stored"
REPEATED: Final = "headrace.repeated"
REJECTED: Final = "headrace.rejected"

SPAN_COMMIT_TABLE: Final = "commit dataset table"
SPAN_CUT_VERSION: Final = "cut dataset version"

METRIC_INGESTION_EVENTS: Final = "headrace_ingestion_events_total"
METRIC_INGESTION_ROWS: Final = "headrace_ingestion_rows_stored_total"
METRIC_INGESTION_REJECTED: Final = "headrace_ingestion_rejected_total"
METRIC_INGESTION_DUPLICATES: Final = "headrace_ingestion_duplicates_total"
METRIC_INGESTION_RESOLVED: Final = "headrace_ingestion_rejected_resolved_total"
METRIC_INGESTION_REJECT_SHARE: Final = "headrace_ingestion_reject_share"
METRIC_INGESTION_REJECT_ALERT: Final = "headrace_ingestion_reject_alert"
METRIC_INGESTION_CUT_HELD: Final = "headrace_ingestion_cut_held"
METRIC_INGESTION_VERSIONS: Final = "headrace_ingestion_versions_cut_total"
METRIC_INGESTION_CLAIMED_BYTES: Final = "headrace_ingestion_claimed_bytes_total"
METRIC_INGESTION_REMOVED_CLAIMS: Final = "headrace_ingestion_removed_claims_total"
METRIC_INGESTION_BATCH_EVENTS: Final = "headrace_ingestion_batch_events"
METRIC_INGESTION_BATCH_SECONDS: Final = "headrace_ingestion_batch_seconds"
METRIC_INGESTION_BATCH_FAILURES: Final = "headrace_ingestion_batch_failures_total"
METRIC_INGESTION_LAG: Final = "headrace_ingestion_lag_events"
METRIC_INGESTION_FRESHNESS: Final = "headrace_ingestion_freshness_seconds"
METRIC_INGESTION_DATASET_FRESHNESS: Final = "headrace_ingestion_dataset_freshness_seconds"
METRIC_INGESTION_EVENT_AGE: Final = "headrace_ingestion_event_age_seconds"
METRIC_INGESTION_COMMIT_SECONDS: Final = "headrace_ingestion_commit_seconds"
METRIC_INGESTION_TABLE_FILES: Final = "headrace_ingestion_table_files"
METRIC_INGESTION_MERGED_FILES: Final = "headrace_ingestion_merged_files_total"
METRIC_INGESTION_MERGED_BYTES: Final = "headrace_ingestion_merged_bytes_total"
METRIC_INGESTION_REMOVED_FILES: Final = "headrace_ingestion_removed_files_total"
METRIC_INGESTION_MAINTENANCE_FAILURES: Final = "headrace_ingestion_maintenance_failures_total"
METRIC_INGESTION_EXPIRED_EVENTS: Final = "headrace_ingestion_expired_events_total"
METRIC_INGESTION_EXPIRED_ROWS: Final = "headrace_ingestion_expired_rows_total"
METRIC_INGESTION_EXPIRED_VERSIONS: Final = "headrace_ingestion_expired_versions_total"
METRIC_INGESTION_EXPIRED_REJECTED: Final = "headrace_ingestion_expired_rejected_total"
METRIC_INGESTION_EXPIRY_FAILURES: Final = "headrace_ingestion_expiry_failures_total"

# --- headrace.scheduling -----------------------------------------------------------------------------

SPAN_SCHEDULE_JOB: Final = "schedule job"
SPAN_WAIT_IN_QUEUE: Final = "wait in queue"
SPAN_PLACE_JOB: Final = "place job"

METRIC_SCHEDULING_SUBMITTED: Final = "headrace_scheduling_submitted_jobs_total"
METRIC_SCHEDULING_ADMITTED: Final = "headrace_scheduling_admitted_jobs_total"
METRIC_SCHEDULING_EVICTED: Final = "headrace_scheduling_evicted_jobs_total"
METRIC_SCHEDULING_FINISHED: Final = "headrace_scheduling_finished_jobs_total"
METRIC_SCHEDULING_WAIT: Final = "headrace_scheduling_admission_wait_time_seconds"
METRIC_SCHEDULING_ATTEMPT: Final = "headrace_scheduling_admission_attempt_duration_seconds"
METRIC_SCHEDULING_PENDING: Final = "headrace_scheduling_pending_jobs"
METRIC_SCHEDULING_ACTIVE: Final = "headrace_scheduling_reserving_active_jobs"
METRIC_SCHEDULING_NODES: Final = "headrace_scheduling_nodes"
METRIC_SCHEDULING_LEADER: Final = "headrace_scheduling_leader"

# --- registry ------------------------------------------------------------------------------------------

SPAN_REGISTER_MODEL_VERSION: Final = "register model version"
SPAN_EVALUATE_GATES: Final = "evaluate gates"

METRIC_REGISTRY_VERSIONS: Final = "headrace_registry_versions_judged_total"
METRIC_REGISTRY_UPLOADS: Final = "headrace_registry_uploads_total"
METRIC_REGISTRY_ARTIFACT_BYTES: Final = "headrace_registry_artifact_stored_bytes_total"

# --- inference -----------------------------------------------------------------------------------------

SPAN_ROLL_OUT: Final = "roll out version"
SPAN_LOAD_VERSION: Final = "load version"
SPAN_SHIFT_TRAFFIC: Final = "shift traffic"

ROLLOUT_STATE: Final = "headrace.rollout.state"
ROLLOUT_WEIGHT: Final = "headrace.rollout.weight"

METRIC_INFERENCE_LEADER: Final = "headrace_inference_leader"
METRIC_INFERENCE_DEPLOYMENTS: Final = "headrace_inference_deployments"
METRIC_INFERENCE_TRITON_UP: Final = "headrace_inference_triton_up"
METRIC_INFERENCE_ROLLOUTS: Final = "headrace_inference_rollouts_total"
METRIC_INFERENCE_LOAD_SECONDS: Final = "headrace_inference_load_seconds"
METRIC_INFERENCE_ENVOYS: Final = "headrace_inference_envoys"
METRIC_INFERENCE_XDS_PUSHES: Final = "headrace_inference_xds_pushes_total"
METRIC_INFERENCE_XDS_REJECTIONS: Final = "headrace_inference_xds_rejections_total"
METRIC_INFERENCE_PREDICTIONS: Final = "headrace_inference_predictions_total"
METRIC_INFERENCE_FEEDBACK: Final = "headrace_inference_feedback_total"
METRIC_INFERENCE_REPLICAS: Final = "headrace_inference_replicas"
METRIC_INFERENCE_NO_ROOM: Final = "headrace_inference_no_room_total"
METRIC_INFERENCE_WAKE_SECONDS: Final = "headrace_inference_wake_seconds"
METRIC_INFERENCE_EXPLAINERS_ENDED: Final = "headrace_inference_explainers_ended_total"
METRIC_INFERENCE_REQUESTS: Final = "headrace_inference_requests_ended_total"
METRIC_INFERENCE_REQUESTS_REPEATED: Final = "headrace_inference_responses_repeated_total"
METRIC_INFERENCE_REQUEST_RETRIES: Final = "headrace_inference_request_retries_total"
METRIC_INFERENCE_REQUESTS_UNDER_WAY: Final = "headrace_inference_requests_under_way"
METRIC_INFERENCE_DRIFT_WINDOWS: Final = "headrace_inference_drift_windows_total"
METRIC_INFERENCE_DRIFT_EPISODES: Final = "headrace_inference_drift_episodes_total"

# --- training ------------------------------------------------------------------------------------------

SPAN_RUN: Final = "run training"
SPAN_LOAD_DATA: Final = "load data"
SPAN_TRAIN: Final = "train"
SPAN_EVALUATE: Final = "evaluate"
SPAN_EXPORT: Final = "export model"
SPAN_REGISTER_RESULT: Final = "register result"
