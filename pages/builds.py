"""Start a build and watch it; it goes on when the tab is closed."""

import streamlit as st

from attribution.records import UserError
from pages.parts.builds_table import builds_table
from pages.parts.grid import notice
from pages.parts.jobs import RUNNING, bar
from pages.parts.managing import managing
from pages.parts.opened import engine, head, whole
from pages.parts.trouble import guarded
from pages.parts.words import span

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
        form()
    with right:
        busy = any(job.state == RUNNING for job in engine().jobs())
        # Polls only while there is something to poll for.
        st.fragment(guarded(jobs), run_every=1.0 if busy else None)(busy)
        table()


def form() -> None:
    """The fields of a build; sends the same options as the command line has."""
    with st.container(border=True):
        st.subheader("New build", anchor=False)
        known = engine().datasets()
        data = st.selectbox(
            "Data",
            list(known),
            format_func=lambda data: known.get(data, data),
            key="data",
            accept_new_options=True,
            help="mnist5k: 4,500 training and 500 test images of digits. Or your own: the path of "
            "a folder with a folder of images for each class (in train and test, or split for "
            "you), of Parquet files, or of a .csv with columns path and label.",
        )
        settings(whole(data))


def settings(data: str) -> None:
    """The rest of the form, whose defaults are for these data."""
    demo = data == DEMO
    with st.form("new_build", border=False):
        noise = st.slider(
            "Wrong labels put in on purpose, %",
            0,
            50,
            10 if demo else 0,
            key="noise" if demo else "noise_own",
            help="To see whether they are found again. The true labels are kept aside.",
        )
        model = st.selectbox(
            "Network",
            ["mlp", "cnn", "resnet9"] if demo else ["cnn", "mlp", "resnet9"],
            key="model" if demo else "model_own",
            accept_new_options=True,
            help="mlp is the fastest, cnn sees shapes; or timm:NAME, torchvision:NAME. Your own "
            "code or weights are named on the command line only.",
        )
        strategy = st.selectbox(
            "Ensemble",
            list(ENSEMBLES),
            format_func=ENSEMBLES.__getitem__,
            key="strategy",
            help="What stands beside each network as a member of the ensemble.",
        )
        one, two = st.columns(2)
        networks = one.number_input(
            "Networks", 1, 50, 5, key="models", help="Trained independently."
        )
        masks = two.number_input(
            "Masks of each",
            0,
            100,
            20,
            key="masks",
            help="Dropout masks of each network, where the ensemble is of masks: more members at a "
            "small price. 0 uses the networks as they are.",
        )
        epochs = st.number_input("Epochs", 1, 500, 50, key="epochs", help="Passes over the data.")
        with st.expander("More settings"):
            kind = st.selectbox(
                "Kind of wrong labels",
                ["uniform", "class"],
                key="noise_kind",
                help="uniform: any other class; class: the classes it is easily taken for.",
            )
            dropout = st.slider("Share dropped by a mask", 0.05, 0.5, 0.1, 0.05, key="dropout")
            width = st.number_input("Width of resnet9", 0.125, 2.0, 1.0, 0.125, key="width")
            seed = st.number_input("Seed", 0, 10**9, 0, key="seed")
        if st.form_submit_button("Start build", type="primary", width="stretch"):
            options = ["--data", data, "--noise", f"{noise / 100:g}", "--noise-kind", kind]
            options += ["--model", model, "--models", str(networks), "--epochs", str(epochs)]
            options += ["--seed", str(seed)]
            if strategy not in MASKED:
                options += ["--strategy", strategy]
            elif masks:
                options += ["--strategy", strategy, "--masks", str(masks)]
                options += ["--dropout", f"{dropout:g}"]
            else:
                options += ["--strategy", "naive"]
            if model == "resnet9":
                options += ["--width", f"{width:g}"]
            try:
                engine().askable(model)
            except UserError as error:
                st.warning(str(error), icon=":material/info:")
                return
            engine().start(options)
            st.rerun()


def jobs(was_busy: bool) -> None:
    """What was started here, newest first."""
    found = engine().jobs()
    if was_busy != any(job.state == RUNNING for job in found):
        st.rerun()  # the whole page: its table and its polling change
    st.subheader("Started here", anchor=False)
    if not found:
        st.caption("None yet. Choose the settings on the left and start one.")
    for job in found[:8]:
        with st.container(border=True):
            words, action = st.columns([5, 2], vertical_alignment="center")
            words.markdown(f"{MARKS[job.state]} {span(job.seconds)}")
            command = [] if job.command == "build" else [job.command]
            said = " ".join([*command, *job.options]).replace("`", "'")
            words.caption(f"`{said or 'default settings'}`")
            if job.state == RUNNING:
                if action.button("Cancel", key=f"cancel_{job.id}", width="stretch"):
                    engine().cancel(job.id)
                    st.rerun(scope="fragment")
                bar(job)
            elif job.state == "done" and job.build:
                if action.button("Open", key=f"open_{job.id}", width="stretch", type="primary"):
                    st.session_state["build"] = job.build
                    page = SHOWN_ON.get(job.command, "compare")
                    st.switch_page(f"pages/{page}.py", query_params={"build": job.build})
            if job.error:
                st.error(job.error, icon=":material/error:")
            # A constant title: another one each second would close it again.
            log = st.expander("Log", key=f"log_{job.id}", on_change="rerun")
            if log.open:
                log.code(engine().job_log(job.id) or "Nothing yet.", language=None)


def table() -> None:
    """Everything that is finished."""
    st.subheader("Finished", anchor=False)
    if engine().builds():
        builds_table("finished")
        managing()
    else:
        st.caption("None yet.")


main()
