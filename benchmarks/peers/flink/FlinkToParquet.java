import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;

/** From Kafka to Parquet by Flink SQL: all that the topic holds, files completed by each checkpoint. */
public final class FlinkToParquet {
    private static final int CORES = 2;

    /** Arguments: broker, topic, folder, milliseconds between checkpoints, columns as SQL declares them. */
    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        String topic = arguments[1];
        String folder = arguments[2];
        String checkpointMillis = arguments[3];
        String columns = arguments[4];
        Configuration settings = new Configuration();
        settings.setString("rest.address", "127.0.0.1");
        settings.setString("rest.bind-address", "127.0.0.1");
        settings.setString("rest.bind-port", "0");
        settings.setString("jobmanager.bind-host", "127.0.0.1");
        settings.setString("taskmanager.host", "127.0.0.1");
        settings.setString("taskmanager.bind-host", "127.0.0.1");
        settings.setString("io.tmp.dirs", folder + "/scratch");
        settings.setString("execution.checkpointing.interval", checkpointMillis + " ms");
        settings.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
        settings.setString("execution.checkpointing.storage", "filesystem");
        settings.setString("execution.checkpointing.dir", "file://" + folder + "/checkpoints");
        settings.setString("pipeline.object-reuse", "true");
        StreamTableEnvironment tables =
                StreamTableEnvironment.create(
                        StreamExecutionEnvironment.createLocalEnvironment(CORES, settings));
        tables.executeSql(
                "CREATE TABLE events (" + columns + ") WITH ("
                        + "'connector' = 'kafka',"
                        + "'topic' = '" + topic + "',"
                        + "'properties.bootstrap.servers' = '" + bootstrap + "',"
                        + "'properties.max.poll.records' = '20000',"
                        + "'properties.max.partition.fetch.bytes' = '8388608',"
                        + "'scan.startup.mode' = 'earliest-offset',"
                        + "'scan.bounded.mode' = 'latest-offset',"
                        + "'format' = 'json')");
        tables.executeSql(
                "CREATE TABLE stored (" + columns + ") WITH ("
                        + "'connector' = 'filesystem',"
                        + "'path' = 'file://" + folder + "/table',"
                        + "'format' = 'parquet')");
        tables.executeSql("INSERT INTO stored SELECT * FROM events").await();
        // The cluster's threads keep the process alive.
        System.exit(0);
    }
}
