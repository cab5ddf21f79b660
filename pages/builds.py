"""Start a build and watch it; it goes on when the tab is closed."""

from typing import Any

import streamlit as st

from attribution.jobs import Job
from attribution.proposal import Proposal, proposed
from attribution.quantities import span
from attribution.records import BuildSpec, DataSpec, EstimatorSpec
from attribution.strategies import axes, options, usual_power, usual_q
from pages.parts import own
from pages.parts.access import BUILD
from pages.parts.builds_table import builds_table
from pages.parts.estimated import estimate, estimated
from pages.parts.grid import notice
from pages.parts.jobs import RUNNING, bar
from pages.parts.managing import managing, removing
from pages.parts.opened import engine, head, launch, locked, may, whole
from pages.parts.trouble import guarded

JOBS = 8  # that are shown, beside what is running
SHOWN_ON = {"build": "explain", "verify": "explain", "map": "map"}  # else "compare"
MARKS = {
    "running": ":blue-badge[running]",
    "done": ":green-badge[done]",
    "failed": ":red-badge[failed]",
    "cancelled": ":gray-badge[cancelled]",
}
ENSEMBLES = {
    "dropout": "dropout masks of each network",
    "naive": "independent networks only",
    "lora": "LoRA adapters on each network",
    "snapshots": "snapshots along the training",
    "finetunes": "short fine-tunes of each network",
    "forward": "independent networks, masks for confidence only",
}
MASKED = ("dropout", "forward")
DEMO = "mnist5k"
USUAL = Proposal(model="cnn", epochs=50, models=5, masks=20, why="")


def main() -> None:
    head(
        st,
        "Builds",
        "A build trains the networks and notes how each training image pulls on them. "
        "It runs in the background: closing this tab does not stop it.",
    )
    notice()
    left, right = st.columns([4, 7], gap="large")
    with left:
        guarded(form)()
    with right:
        busy = any(job.state == RUNNING for job in engine().jobs())
        # Polls only while there is something to poll for.
        st.fragment(guarded(jobs), run_every=1.0 if busy else None)(busy)
        table()


def form() -> None:
    """The fields of a build; sends the same options as the command line has."""
    may(BUILD)
    with st.container(border=True):
        st.subheader("New build", anchor=False)
        place = st.container()  # the archive is first, because it chooses the data
        own.uploaded()
        names = own.choices()
        data = place.selectbox(
            "Data",
            list(names),
            key="data",
            format_func=lambda data: names.get(data, data),
            accept_new_options=True,
            help="mnist5k: 4,500 training and 500 test images of digits. Or your own: the path of "
            "a folder with a folder of images for each class (in train and test, or split for "
            "you), of Parquet files, or of a .csv with columns path and label.",
        )
        data = whole(data)
        settings(data, own.described(data) if data != DEMO else None)


def settings(data: str, found: dict[str, Any] | None) -> None:
    """The rest of the form, whose defaults are for these data."""
    demo = data == DEMO
    usual = proposed(found) if found else USUAL
    if found:
        st.caption(usual.why)
    # Other data, other defaults; a setting that was changed is kept while the data are the same.
    of = f"_{found['data']}" if found else "" if demo else "_own"
    with st.form("new_build", border=False):
        noise = st.slider(
            "Wrong labels put in on purpose, %",
            0,
            50,
            10 if demo else 0,
            key=f"noise{of}",
            help="To see whether they are found again. The true labels are kept aside.",
        )
        names = ["mlp", "cnn", "resnet9"] if demo else ["cnn", "mlp", "resnet9"]
        model = st.selectbox(
            "Network",
            names,
            0 if demo else names.index(usual.model),
            key=f"model{of}",
            accept_new_options=True,
            help="mlp is the fastest, cnn sees shapes, resnet9 is the deepest; or timm:NAME, "
            "torchvision:NAME. Your own code or weights are named on the command line only.",
        )
        strategy = st.selectbox(
            "Ensemble",
            list(ENSEMBLES),
            format_func=ENSEMBLES.__getitem__,
            key="strategy",
            help="What stands beside each network as a member of the ensemble.",
        )
        one, two, three = st.columns(3)
        networks = one.number_input(
            "Networks", 1, 50, usual.models, key=f"models{of}", help="Trained independently."
        )
        masks = two.number_input(
            "Masks of each",
            0,
            100,
            usual.masks,
            key=f"masks{of}",
            help="Dropout masks of each network, where the ensemble is of masks: more members at a "
            "small price. 0 uses the networks as they are.",
        )
        epochs = three.number_input(
            "Epochs", 1, 500, usual.epochs, key=f"epochs{of}", help="Passes over the data."
        )
        with st.expander("More settings"):
            kind = st.selectbox(
                "Kind of wrong labels",
                ["uniform", "class"],
                key="noise_kind",
                help="uniform: any other class; class: the classes it is easily taken for.",
            )
            dropout = st.slider("Share dropped by a mask", 0.05, 0.5, 0.1, 0.05, key="dropout")
            width = st.number_input(
                "Width of resnet9", 0.125, 2.0, usual.width, 0.125, key=f"width{of}"
            )
            seed = st.number_input("Seed", 0, 10**9, 0, key="seed")
        probe, start = st.columns([2, 3])
        asked = probe.form_submit_button(
            "Estimate",
            width="stretch",
            help="How long it will take and how much of the disk: trains a little and measures.",
        )
        started = start.form_submit_button("Start build", type="primary", width="stretch")
    engine().askable(model)
    bare = strategy in MASKED and not masks
    chosen = axes("naive" if bare else strategy, {"masks": masks if strategy in MASKED else None})
    q = usual_q(chosen["forward_only"])
    spec = BuildSpec(
        data=DataSpec(
            name=found["name"] if found else data,
            pixels=found["data"] if found else "",
            noise=noise / 100,
            noise_kind=kind,
        ),
        model=model,
        width=width if model == "resnet9" else 1.0,
        epochs=epochs,
        strategy="naive" if bare else strategy,
        models=networks,
        p=dropout if chosen["masks"] else BuildSpec().p,
        estimator=EstimatorSpec(q=q, q_power=usual_power("trak", chosen["masks"], q)),
        seed=seed,
        **chosen,
    )
    known_data = demo or found is not None
    if asked and not known_data:
        with own.Progress() as report:
            own.look(data, report)
        st.rerun()
    if asked:
        estimate(spec)
    if known_data and not started:  # what is free is looked at anew where it is started
        estimated(spec)
    if started:
        engine().check(spec)
        if known_data:
            may(BUILD).room(spec)
        launch(["--data", data, *options(spec)[2:]])
        st.rerun()


def jobs(was_busy: bool) -> None:
    """What was started here, newest first."""
    found = engine().jobs()
    if was_busy != any(job.state == RUNNING for job in found):
        st.rerun()  # the whole page: its table and its polling change
    st.subheader("Started here", anchor=False)
    if not found:
        st.caption("None yet. Choose the settings on the left and start one.")
    for job in [one for at, one in enumerate(found) if at < JOBS or one.state == RUNNING]:
        with st.container(border=True):
            words, action = st.columns([5, 2], vertical_alignment="center")
            words.markdown(f"{MARKS[job.state]} {span(job.seconds)}")
            command = [] if job.command == "build" else [job.command]
            said = " ".join([*command, *job.options]).replace("`", "'")
            words.caption(f"`{said or 'default settings'}`")
            if job.state == RUNNING:
                if action.button(
                    "Cancel", **locked(BUILD, key=f"cancel_{job.id}", width="stretch")
                ):
                    may(BUILD).cancel(job.id)
                    st.rerun(scope="fragment")
                bar(job)
            elif job.state == "done" and job.build and not engine().has(job.build):
                action.caption("Deleted since")
            elif job.state == "done" and job.build:
                if action.button("Open", key=f"open_{job.id}", width="stretch", type="primary"):
                    st.session_state["build"] = job.build
                    page = SHOWN_ON.get(job.command, "compare")
                    st.switch_page(f"pages/{page}.py", query_params={"build": job.build})
            elif resumable(job, found) and action.button(
                "Resume",
                **locked(
                    BUILD,
                    key=f"resume_{job.id}",
                    width="stretch",
                    help="Goes on where it was: what was finished is not made again.",
                ),
            ):
                launch(list(job.options), job.command)
                st.rerun()
            if job.error:
                st.error(job.error, icon=":material/error:")
            # A constant title: another one each second would close it again.
            log = st.expander("Log", key=f"log_{job.id}", on_change="rerun")
            if log.open:
                log.code(engine().job_log(job.id) or "Nothing yet.", language=None)


def resumable(job: Job, found: list[Job]) -> bool:
    """Whether a job ended before its time, and nobody has gone on with it since."""
    newer = found[: next(j for j, one in enumerate(found) if one.id == job.id)]
    same = any((n.command, n.options) == (job.command, job.options) for n in newer)
    return job.state in ("cancelled", "failed") and not same


def table() -> None:
    """Everything that is finished."""
    st.subheader("Finished", anchor=False)
    if engine().builds():
        builds_table("finished")
        managing()
    else:
        st.caption("None yet.")
    removing()


main()
