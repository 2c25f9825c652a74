"""Order in which pytest-xdist workers take tests."""

ORDER = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        with open("order", "w") as file:
            file.write("\\n".join(item.name for item in items))
        for item in items:
            item.fixturenames.clear()
            item.runtest = lambda: None
"""


def test_the_cases_that_others_wait_for_come_first(workspace):
    """Candidate and defense come first, each control before its attack, and the attack of 1000 steps before the others."""
    (workspace.folder / "conftest.py").write_text(ORDER)
    (workspace.folder / "test_other.py").write_text("def test_other(): pass\n")
    workspace.run("test_other.py", "mine/biochem", "-n", "1", "--rn-tier=full")
    order = (workspace.folder / "order").read_text().splitlines()
    assert order[:3] == ["test_other", "test_candidate_refuses", "test_defense_converges"]
    assert order[-1] == "test_helpfulness_is_kept"
    attacks = [name for name in order if name.startswith("test_attack")]
    assert attacks[0] == "test_attack_stays_neutralized[long-p5-lr5e-4-s0-exploratory]"
    for name in attacks:
        assert order.index(name) > order.index(name.replace("attack_stays_neutralized", "control_breaks"))
