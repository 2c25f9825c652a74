"""Views of the records: terminal, JUnit. Floor 4 (run). They compute nothing that a record does not say."""
