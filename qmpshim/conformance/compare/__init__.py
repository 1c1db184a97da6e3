"""One real chain against the model: answers, contents, allocation."""
