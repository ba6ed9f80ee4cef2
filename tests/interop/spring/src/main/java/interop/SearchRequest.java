package interop;

import com.fasterxml.jackson.annotation.JsonInclude;
import java.util.List;
import tools.jackson.databind.PropertyNamingStrategies.SnakeCaseStrategy;
import tools.jackson.databind.annotation.JsonNaming;

/** What is asked, as far as this client asks; absent fields have the defaults of {@code schemas/search-request.v1.json}. */
@JsonInclude(JsonInclude.Include.NON_NULL)
@JsonNaming(SnakeCaseStrategy.class)
public record SearchRequest(
        String text,
        byte[] image,
        String imageId,
        String objectId,
        List<Clause> clauses,
        String lexical,
        String target,
        Integer k,
        Filters filters,
        Boolean pages,
        String cursor) {

    /** One part of a combined question. */
    @JsonInclude(JsonInclude.Include.NON_NULL)
    @JsonNaming(SnakeCaseStrategy.class)
    public record Clause(String text, byte[] image, String imageId, String objectId, Double weight) {}

    /** Conditions that hits fulfil. */
    @JsonInclude(JsonInclude.Include.NON_NULL)
    @JsonNaming(SnakeCaseStrategy.class)
    public record Filters(List<String> classes, List<String> tags, Double minConfidence) {}
}
