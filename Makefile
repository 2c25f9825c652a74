.PHONY: check test suite site bench schema reference organism baking-classifier evidence panel hardening finetunability cross-domain relearning first-reward validity

check:  ## linters, types, risks that bandit knows, and awkward prose
	ruff check .
	ruff format --check .
	mypy
	bandit --quiet --recursive --configfile pyproject.toml rn_harness
	python tests/prose.py --limit 2 rn_harness tests benchmarks
	python tests/prose.py --limit 4 README.md docs --exclude docs/evidence --exclude docs/log.md

test:  ## README's test command
	pytest -n 2 --dist loadfile

suite:  ## the main job
	pytest suites/biochem

site:  ## the pages as a site, in build/site
	zensical build --strict

bench:  ## docs/evidence/performance.md: the cost of a run with comparisons, in pieces, about two hours on one core
	python benchmarks/performance.py

schema:  ## suites/schema.json, for editors, and rn_harness/records/schemas, for readers of records
	python -c "import json; from rn_harness.spec.suite import Declaration; print(json.dumps(Declaration.model_json_schema(), indent=2, sort_keys=True))" > suites/schema.json
	python -c "from rn_harness.records.schemas import write_schemas; write_schemas()"

reference:  ## docs/reference, from the code
	python tests/reference.py

organism:  ## rebuild the shipped organism, under 5 minutes on 2 cores
	python -m rn_harness.organism build --suite suites/biochem --suite suites/cybercrime --suite suites/baking --out fixtures/organism

baking-classifier:  ## rebuild the shipped classifier for the domain baking, under 2 minutes
	python benchmarks/baking_classifier/build.py --out fixtures/judges/baking-classifier

evidence:  ## docs/evidence: results on the organism, about an hour on 2 cores
	python benchmarks/evidence.py

panel:  ## docs/evidence/panel.json: broken defenses, and whether the gate fails them, about an hour on 2 cores
	python benchmarks/panel.py

hardening:  ## docs/evidence/hardening.json and the tables of docs/evidence/findings-hardening.md: supervised attackers against each defense, in pieces
	python benchmarks/hardening.py

finetunability:  ## docs/evidence/findings-cost.md: steps to learn a harmless task, by defense, about 15 minutes on one core
	python benchmarks/finetunability.py

cross-domain:  ## docs/evidence/findings-domains.md: a defense under attack in other domains, about 15 minutes on one core
	python benchmarks/cross_domain.py

relearning:  ## docs/evidence/relearning.json and the tables of docs/evidence/findings-relearning.md: supervised steps against a never-taught organism's, in pieces
	python benchmarks/relearning.py

first-reward:  ## docs/evidence/first-reward.{json,svg} and the table of docs/evidence/theory.md, about 8 minutes of one core
	python benchmarks/first_reward.py

validity:  ## docs/evidence/battery.md: the tables of the battery of sabotages and of the grammar, from their declarations
	pytest tests/invariant/test_sabotage.py tests/invariant/test_grammar.py -k page --rewrite-reference
