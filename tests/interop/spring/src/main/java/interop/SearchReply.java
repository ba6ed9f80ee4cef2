package interop;

import com.fasterxml.jackson.annotation.JsonInclude;
import com.fasterxml.jackson.annotation.JsonProperty;
import java.time.Instant;
import java.util.List;
import tools.jackson.databind.PropertyNamingStrategies.SnakeCaseStrategy;
import tools.jackson.databind.annotation.JsonNaming;

/** The answer, as far as this client reads it: hits by falling score, or an error. */
@JsonInclude(JsonInclude.Include.NON_NULL)
@JsonNaming(SnakeCaseStrategy.class)
public record SearchReply(
        List<Hit> hits, boolean noGoodMatch, boolean partial, String cursor, String modelDigest, Error error) {

    /** One found image or object. */
    @JsonInclude(JsonInclude.Include.NON_NULL)
    @JsonNaming(SnakeCaseStrategy.class)
    public record Hit(
            String imageId,
            String objectId,
            @JsonProperty("class") String className,
            double score,
            double[] box,
            Instant uploadedAt) {}

    /** Why a request was not answered. */
    public record Error(String code, String message) {}
}
