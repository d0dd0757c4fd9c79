-- Every instance's router hears which deployment was changed, whichever instance did it.
CREATE FUNCTION notify_deployment_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(
        'headrace_inference',
        json_build_object('schema', TG_TABLE_SCHEMA, 'deployment', COALESCE(NEW.name, OLD.name))::text
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER deployment_changed AFTER INSERT OR UPDATE OR DELETE ON deployments
    FOR EACH ROW EXECUTE FUNCTION notify_deployment_change();

-- Those that are removed go with a change of their deployment.
CREATE FUNCTION notify_rollout_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(
        'headrace_inference',
        json_build_object('schema', TG_TABLE_SCHEMA, 'deployment', NEW.deployment)::text
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER rollout_changed AFTER INSERT OR UPDATE ON rollouts
    FOR EACH ROW EXECUTE FUNCTION notify_rollout_change();
