# The two commands that a newcomer needs are `make demo` and `make test`.

.PHONY: demo up test check fmt nats-server

nats-server:
	@nats/server.sh > /dev/null

fmt:
	cargo fmt --all
