"""The plugin has no effect on a session without a suite."""


def test_an_unrelated_session_sees_nothing_of_the_plugin(pytester):
    """An unrelated session gets no output, no file, and none of the heavy modules."""
    pytester.makeconftest(
        """
        import sys

        def pytest_sessionfinish(session):
            heavy = {"torch", "transformers", "trl", "peft", "pydantic", "yaml", "scipy", "rn_harness.run.session"}
            print("LOADED", sorted(heavy & set(sys.modules)))
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    before = {p.name for p in pytester.path.iterdir()}
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    assert result.ret == 0
    text = result.stdout.str()
    assert "LOADED []" in text
    assert "rn-harness:" not in text
    assert "no verdict" not in text
    left = {p.name for p in pytester.path.iterdir()} - before
    assert {name for name in left if not name.startswith("runpytest-")} <= {"__pycache__", "stdout", "stderr"}  # pytester's


def test_a_foreign_model_option_does_not_break_an_unrelated_session(pytester):
    """If another plugin owns --model, sessions run as before."""
    pytester.makepyfile(
        foreign="""
        def pytest_addoption(parser):
            parser.addoption("--model", default="theirs")
        """,
        test_it="""
        def test_theirs(request):
            assert request.config.getoption("--model") == "theirs"
        """,
    )
    pytester.syspathinsert()
    assert pytester.runpytest_subprocess("-p", "foreign").ret == 0
