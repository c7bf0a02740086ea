"""Recurrent layers as ONNX models, written by hand, and run by ONNX Runtime or OpenVINO on inputs and outputs that stay
where they are."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

# torch's gate order -> ONNX's: LSTM i f g o -> i o f c; GRU r z n -> z r h.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
OPSET = 17


def _gates(weight, kind):
    """(G*H, ...) in torch's gate order -> the same in ONNX's."""
    parts = np.split(weight.numpy(), len(GATES[kind]))
    return np.concatenate([parts[gate] for gate in GATES[kind]])


def _layer_weights(problem, kind, layer):
    """W (D,G*H,I), R (D,G*H,H), B (D,2*G*H) of one layer."""
    case = problem.case
    suffixes = [""] if case.cell else [f"_l{layer}"] + [f"_l{layer}_reverse"] * case.bidirectional
    part = {
        name: np.stack([_gates(problem.weights[name + suffix], kind) for suffix in suffixes])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    return part["weight_ih"], part["weight_hh"], np.concatenate([part["bias_ih"], part["bias_hh"]], axis=1)


def model(problem):
    """The ONNX model of a recurrent problem: x (T,B,I), h, c (L*D,B,H) -> y (T,B,D*H), h_n and c_n like h."""
    case = problem.case
    kind = case.operation.removesuffix("_cell").upper()
    directions, states = 1 + case.bidirectional, len(problem.inputs) - 1
    constants = {"sizes": np.array([0, 0, directions * case.H], np.int64)}
    nodes, source, lasts = [], "x", []
    splits = [[f"{state}{layer}" for layer in range(case.L)] for state in "hc"[:states]]
    for state, names in zip("hc", splits):
        constants[f"{state}_split"] = np.full(case.L, directions, np.int64)
        nodes.append(helper.make_node("Split", [state, f"{state}_split"], names, axis=0))
    for layer in range(case.L):
        for name, value in zip("WRB", _layer_weights(problem, kind, layer)):
            constants[f"{name}{layer}"] = value
        last = [f"{state}_n{layer}" for state in "hc"[:states]]
        attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
        given = [source, f"W{layer}", f"R{layer}", f"B{layer}", "", *(names[layer] for names in splits)]
        direction = "bidirectional" if case.bidirectional else "forward"
        nodes += [
            helper.make_node(kind, given, [f"Y{layer}", *last], hidden_size=case.H, direction=direction, **attributes),
            helper.make_node("Transpose", [f"Y{layer}"], [f"Yt{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"Yt{layer}", "sizes"], [f"y{layer}"]),
        ]
        source = f"y{layer}"
        lasts.append(last)
    nodes.append(helper.make_node("Identity", [source], ["y"]))
    for state, names in zip("hc", zip(*lasts)):
        nodes.append(helper.make_node("Concat", list(names), [f"{state}_n"], axis=0))

    def declared(names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None]) for name in names]

    graph = helper.make_graph(
        nodes,
        case.operation,
        declared(["x", *"hc"[:states]]),
        declared(["y", *(f"{state}_n" for state in "hc"[:states])]),
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def _tensors(problem):
    """The model's inputs, its outputs, and what of these a call returns, in the order of `problems.call`."""
    case = problem.case
    inputs = [value[None] if case.cell else value for value in problem.inputs]
    shape = (*inputs[0].shape[:2], case.H * (1 + case.bidirectional))
    outputs = [torch.empty(shape), *(torch.empty_like(state) for state in inputs[1:])]
    return inputs, outputs, [tensor[0] for tensor in outputs[1:]] if case.cell else outputs


def onnxruntime_call(problem, threads):
    """A function that runs the problem in ONNX Runtime and returns its results, in the order of `problems.call`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Its threads wait in a loop for the next call, on the cores of whoever is timed in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model(problem).SerializeToString(), options, ["CPUExecutionProvider"])
    inputs, outputs, results = _tensors(problem)
    binding = session.io_binding()
    for bind, declared, tensors in (
        (binding.bind_input, session.get_inputs(), inputs),
        (binding.bind_output, session.get_outputs(), outputs),
    ):
        for value, tensor in zip(declared, tensors):
            bind(value.name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())

    def run():
        session.run_with_iobinding(binding)
        return results

    run.keeps_alive = inputs, outputs
    return run


def openvino_call(problem, threads):
    """The same in OpenVINO: shapes fixed and weights packed when it is compiled, float32 not lowered to bfloat16."""
    import openvino

    inputs, outputs, results = _tensors(problem)
    core = openvino.Core()
    network = core.read_model(model(problem).SerializeToString())
    network.reshape({value.any_name: list(tensor.shape) for value, tensor in zip(network.inputs, inputs)})
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(network, "CPU", options | {"ENABLE_CPU_PINNING": False}).create_infer_request()
    for index, tensor in enumerate(inputs):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))
    for index, tensor in enumerate(outputs):
        request.set_output_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))

    def run():
        request.infer()
        return results

    run.keeps_alive = inputs, outputs
    return run
