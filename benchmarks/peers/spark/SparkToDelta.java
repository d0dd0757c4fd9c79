import static org.apache.spark.sql.functions.col;
import static org.apache.spark.sql.functions.from_json;

import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.streaming.Trigger;

/** From Kafka to Delta Lake by Spark Structured Streaming: all that the topic holds, batch after batch. */
public final class SparkToDelta {
    private static final int CORES = 2;

    /** Arguments: broker, topic, folder, most events of a batch, columns as SQL declares them. */
    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        String topic = arguments[1];
        String folder = arguments[2];
        String batchEvents = arguments[3];
        String columns = arguments[4];
        SparkSession spark =
                SparkSession.builder()
                        .master("local[" + CORES + "]")
                        .config("spark.driver.bindAddress", "127.0.0.1")
                        .config("spark.driver.host", "127.0.0.1")
                        .config("spark.log.level", "WARN")
                        .config("spark.ui.enabled", "false")
                        .config("spark.local.dir", folder + "/scratch")
                        .config("spark.sql.warehouse.dir", folder + "/warehouse")
                        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
                        .config(
                                "spark.sql.catalog.spark_catalog",
                                "org.apache.spark.sql.delta.catalog.DeltaCatalog")
                        .config("spark.sql.shuffle.partitions", CORES)
                        // Meant for tables of many files: with the default of 50, small commits wait for tasks.
                        .config("spark.databricks.delta.snapshotPartitions", CORES)
                        .getOrCreate();
        Dataset<Row> events =
                spark.readStream()
                        .format("kafka")
                        .option("kafka.bootstrap.servers", bootstrap)
                        .option("kafka.max.poll.records", 20_000)
                        .option("kafka.max.partition.fetch.bytes", 8 << 20)
                        .option("subscribe", topic)
                        .option("startingOffsets", "earliest")
                        .option("maxOffsetsPerTrigger", batchEvents)
                        .load();
        events.select(from_json(col("value").cast("string"), columns, java.util.Map.of()).as("row"))
                .select("row.*")
                .writeStream()
                .format("delta")
                .option("checkpointLocation", folder + "/checkpoint")
                .trigger(Trigger.AvailableNow())
                .start(folder + "/table")
                .awaitTermination();
        spark.stop();
    }
}
