The proxy allows itself as many open files as the system lets it (shells start programs with 1024), warns if MAX_SESSIONS may need more, keeps some for the backend, and says so when it has none left.
