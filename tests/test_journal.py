"""Laws of the journal: proposals survive the file, steps are played back, forgeries are refused."""

import numpy as np
import pytest
import torch
from densities import normals, uniforms

from nbi_plus import ArchiveError, FlowConfig
from nbi_plus.infer.proposals.base import (
    Blend,
    Conditioned,
    FlowProposal,
    PriorProposal,
    Separate,
    free_flow,
)
from nbi_plus.infer.proposals.circles import Cut, CutProposal
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.sequential.journal import Journal, Step, decode, encode
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.learn.flows import Flow

N_DIM = 3
KEY = torch.tensor([17])
CPU = torch.device("cpu")


def mixture(seed=0):
    factors = (0.2 * normals(seed, 1, 2, N_DIM)).exp().diag_embed()
    return StudentMixture(
        uniforms(seed, 1, 2).log_softmax(1), normals(seed, 1, 2, N_DIM), factors, 10.0
    )


def random_flow(n_context, **options):
    """Return a flow that is not the identity, whitened somewhere."""
    torch.manual_seed(0)
    flow = Flow(N_DIM, n_context, FlowConfig(n_blocks=2, hidden=16, **options))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    flow.whiten(1 + 0.5 * normals(1, 200, N_DIM))
    return flow.eval()


def conditioned():
    exact = random_flow(4, n_mog=3, perm_seed=5).exact()
    return Conditioned(FlowProposal(exact, exact, 0.3, 1.5), normals(2, 1, 4).float())


PROPOSALS = {
    "prior": lambda: PriorProposal(N_DIM),
    "mixture": mixture,
    "network": conditioned,
    "maf": lambda: free_flow(random_flow(1, n_mog=1), 0.2, 2.0),
    "nsf": lambda: free_flow(random_flow(1, kind="nsf", n_bins=5), 0.2, 2.0),
    "blend": lambda: Blend((PriorProposal(N_DIM), mixture(3), conditioned()), (0.5, 0.2, 0.3)),
    "cut": lambda: CutProposal(mixture(4), Cut((0, 2), uniforms(5, 1, 2))),
    "sum": lambda: CutProposal(
        mixture(4), Cut((0, 2), uniforms(5, 1, 2), torch.tensor([[[0.0, 0], [1, 0]]]).double())
    ),
    "blend of cuts": lambda: Blend(
        (
            CutProposal(mixture(4), Cut((1,), uniforms(5, 1, 1))),
            CutProposal(free_flow(random_flow(1), 0.2, 2.0), Cut((1,), uniforms(6, 1, 1))),
        ),
        (0.5, 0.5),
    ),
}


def assert_same(a, b):
    z = normals(9, 1, 40, N_DIM)
    torch.testing.assert_close(a.log_prob(z), b.log_prob(z), rtol=1e-12, atol=1e-12)
    for n in (100, 37):
        drawn = [q.draw(KEY, n, 3, "draw") for q in (a, b)]
        torch.testing.assert_close(*drawn, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PROPOSALS)
def test_a_proposal_survives_the_file(kind, tmp_path):
    proposal, arrays = PROPOSALS[kind](), {}
    meta = encode(proposal, "0/", arrays)
    write_archive(tmp_path / "p.h5", "round", meta, arrays)
    archive = read_archive(tmp_path / "p.h5", "round")
    found = decode(archive.meta, "0/", archive.arrays, CPU)
    assert type(found) is type(proposal)
    assert_same(found, proposal)
    assert not any(v.requires_grad for v in vars(found).values() if isinstance(v, torch.Tensor))


def test_two_proposals_of_a_kind_are_not_mixed_up(tmp_path):
    pair, z = (mixture(1), mixture(2)), normals(0, 1, 5, N_DIM)
    found = Journal(tmp_path, CPU).step("adapt", lambda: Step(pair, z, {})).proposals
    for mine, theirs in zip(pair, found, strict=True):
        assert_same(mine, theirs)


def test_what_has_no_form_is_refused():
    with pytest.raises(TypeError, match="Separate must be one of"):
        encode(Separate((mixture(),)), "0/", {})


def refuse_to_make():
    raise AssertionError("a recorded step must not be made again")


def test_recorded_steps_are_played_back(tmp_path):
    steps = [
        Step((PROPOSALS[kind](),), normals(i, 1, 5, N_DIM), {"weight": torch.full((2,), i)})
        for i, kind in enumerate(("mixture", "network", "prior"))
    ]
    first = Journal(tmp_path, CPU)
    made = [first.step(f"step {i}", lambda s=step: s) for i, step in enumerate(steps)]
    again = Journal(tmp_path, CPU)
    for i, step in enumerate(steps):
        played = again.step(f"step {i}", refuse_to_make)
        for found in (made[i], played):
            assert torch.equal(found.z, step.z)
            assert torch.equal(found.state["weight"], step.state["weight"])
            assert_same(found.proposals[0], step.proposals[0])
    assert again.step("step 3", lambda: steps[0]).z.equal(steps[0].z)
    assert again.n_steps == 4


def test_a_network_s_state_keeps_its_dtypes(tmp_path):
    state = {"a.weight": torch.ones(2, 3), "b.n": torch.tensor(3), "c": torch.zeros(0).double(),
             "d": torch.tensor([True])}  # fmt: skip
    step = Journal(tmp_path, CPU).step("train", lambda: Step((), torch.zeros(1, 0, 1), state))
    assert step.state.keys() == state.keys()
    for name, value in state.items():
        assert step.state[name].dtype == value.dtype
        assert torch.equal(step.state[name], value)


def test_without_a_folder_every_step_is_made():
    journal, step = Journal(None, CPU), Step((mixture(),), torch.zeros(1, 2, N_DIM), {})
    assert journal.step("adapt", lambda: step) is step


def test_a_step_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(AssertionError, match="must not"):
        Journal(tmp_path, CPU).step("adapt", refuse_to_make)
    assert not list(tmp_path.iterdir())


def test_another_fit_s_step_is_refused(tmp_path):
    step = Step((mixture(),), torch.zeros(1, 2, N_DIM), {})
    Journal(tmp_path, CPU).step("locate 1", lambda: step)
    with pytest.raises(ArchiveError, match="must hold the step 'adapt 1' .* holds 'locate 1'"):
        Journal(tmp_path, CPU).step("adapt 1", refuse_to_make)


def forge(path, **changes):
    """Change the first proposal of a recorded step."""
    archive = read_archive(path, "round")
    proposals = [{**archive.meta["proposals"][0], **changes}]
    write_archive(path, "round", {**archive.meta, "proposals": proposals}, archive.arrays)


@pytest.mark.parametrize("changes", [
    {"kind": "Exploit"}, {"kind": "os.system"}, {"kind": None}, {"kind": ["StudentMixture"]},
    {"kind": "CutProposal"},
])  # fmt: skip
def test_a_forged_proposal_is_refused(tmp_path, changes):
    step = Step((mixture(),), torch.zeros(1, 2, N_DIM), {})
    Journal(tmp_path, CPU).step("adapt", lambda: step)
    forge(tmp_path / "round-000.h5", **changes)
    with pytest.raises(ArchiveError):
        Journal(tmp_path, CPU).step("adapt", refuse_to_make)


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_archive(tmp_path / "round-000.h5", "model", {"name": "adapt"}, {"z": np.zeros(3)})
    with pytest.raises(ArchiveError):
        Journal(tmp_path, CPU).step("adapt", refuse_to_make)
    (tmp_path / "round-000.h5").write_bytes(b"nothing of the sort")
    with pytest.raises(ArchiveError):
        Journal(tmp_path, CPU).step("adapt", refuse_to_make)
