PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := kakuri/agentapi/v1/agent.proto cri/v1/runtime.proto cri/v1/fake.proto

.PHONY: proto
proto: ## make the gRPC stubs again from the protos
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(PROTOS)
