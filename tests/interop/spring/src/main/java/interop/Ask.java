package interop;

import com.fasterxml.jackson.annotation.JsonInclude;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Scanner;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.KafkaMessageListenerContainer;
import org.springframework.kafka.requestreply.KafkaReplyTimeoutException;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.kafka.requestreply.RequestReplyFuture;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.kafka.support.TopicPartitionOffset;
import org.springframework.kafka.support.serializer.JacksonJsonDeserializer;
import org.springframework.kafka.support.serializer.JacksonJsonSerializer;
import tools.jackson.databind.json.JsonMapper;

/**
 * Asks each question of standard input, one JSON object a line, all of them at once, and prints what became of each,
 * one JSON object a line in the same order: {@code BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC REPLY_PARTITION}.
 */
public final class Ask {
    private static final JsonMapper JSON = new JsonMapper();

    /** A line of input; {@code deadlineMs} counts from now and is the patience unless it says something else. */
    record Question(SearchRequest request, long patienceMs, Long deadlineMs) {}

    /** A line of output. */
    @JsonInclude(JsonInclude.Include.NON_NULL)
    record Outcome(SearchReply reply, SearchReply.Error error, boolean timeout, Integer partition, boolean echoed) {}

    public static void main(String[] arguments) throws Exception {
        var template = template(arguments[0], arguments[2], Integer.parseInt(arguments[3]));
        template.start();
        try {
            Map<RequestReplyFuture<String, SearchRequest, SearchReply>, ProducerRecord<String, SearchRequest>> asked =
                    new LinkedHashMap<>();
            try (var lines = new Scanner(System.in, StandardCharsets.UTF_8)) {
                while (lines.hasNextLine()) {
                    var question = JSON.readValue(lines.nextLine(), Question.class);
                    var record = new ProducerRecord<String, SearchRequest>(arguments[1], question.request());
                    long wanted = question.deadlineMs() == null ? question.patienceMs() : question.deadlineMs();
                    var deadline = Long.toString(System.currentTimeMillis() + wanted);
                    record.headers().add("deadline", deadline.getBytes(StandardCharsets.UTF_8));
                    asked.put(template.sendAndReceive(record, Duration.ofMillis(question.patienceMs())), record);
                }
            }
            for (var one : asked.entrySet()) {
                System.out.println(JSON.writeValueAsString(outcome(one.getKey(), one.getValue())));
            }
        } finally {
            template.stop();
            template.destroy();
        }
    }

    private static ReplyingKafkaTemplate<String, SearchRequest, SearchReply> template(
            String bootstrap, String replyTopic, int replyPartition) {
        // Spring's serializer says in a header which Java type it wrote, the agent's replies carry no such header.
        var producers = new DefaultKafkaProducerFactory<String, SearchRequest>(
                Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap, ProducerConfig.LINGER_MS_CONFIG, 0),
                new StringSerializer(),
                new JacksonJsonSerializer<>());
        var consumers = new DefaultKafkaConsumerFactory<String, SearchReply>(
                Map.of(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap, ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false),
                new StringDeserializer(),
                new JacksonJsonDeserializer<>(SearchReply.class, false));
        // One partition of the shared topic, which the template puts into kafka_replyPartition. From where it ends
        // now: a container that finds the end itself may do so after the first reply.
        var partition = new TopicPartition(replyTopic, replyPartition);
        long end;
        try (var consumer = consumers.createConsumer()) {
            end = consumer.endOffsets(List.of(partition)).get(partition);
        }
        var replies = new ContainerProperties(new TopicPartitionOffset(replyTopic, replyPartition, end));
        replies.setGroupId("interop-spring");
        var template =
                new ReplyingKafkaTemplate<>(producers, new KafkaMessageListenerContainer<>(consumers, replies));
        template.setSharedReplyTopic(true);
        template.setReplyErrorChecker(record ->
                record.value() instanceof SearchReply reply && reply.error() != null
                        ? new SearchFailed(reply.error())
                        : null);
        template.afterPropertiesSet();
        return template;
    }

    private static Outcome outcome(
            RequestReplyFuture<String, SearchRequest, SearchReply> future,
            ProducerRecord<String, SearchRequest> request) throws InterruptedException {
        try {
            ConsumerRecord<String, SearchReply> reply = future.get();
            var sent = request.headers().lastHeader(KafkaHeaders.CORRELATION_ID).value();
            var echoed = reply.headers().lastHeader(KafkaHeaders.CORRELATION_ID).value();
            return new Outcome(reply.value(), null, false, reply.partition(), Arrays.equals(sent, echoed));
        } catch (ExecutionException failure) {
            if (failure.getCause() instanceof SearchFailed refused) {
                return new Outcome(
                        null, new SearchReply.Error(refused.code, refused.getMessage()), false, null, true);
            }
            if (failure.getCause() instanceof KafkaReplyTimeoutException) {
                return new Outcome(null, null, true, null, false);
            }
            throw new IllegalStateException(failure.getCause());
        }
    }
}
