package interop;

/** The search agent answered with an error. */
public class SearchFailed extends RuntimeException {
    public final String code;

    public SearchFailed(SearchReply.Error error) {
        super(error.message());
        this.code = error.code();
    }
}
