/*
 * sloth_nb in JupyterLab: two launcher cards and two commands. Written by hand, without a build.
 *
 * JupyterLab loads this file as a module-federation container: it calls init(shareScope) once, then
 * get("./extension"). Two things must never happen here, as they would keep all of JupyterLab from starting:
 * a module without __esModule, and an exception at activation. Hence `guarded` below.
 *
 * What is made is made by Python, at the server's /sloth-nb/… (sloth_nb/authoring/server.py).
 *
 * An installation, an editable one too, holds a copy of this file (pyproject.toml, shared-data). To work on it:
 * `pip install -e .` again after a change, and reload the page.
 */
(window._JUPYTERLAB = window._JUPYTERLAB || {})["sloth-nb"] = (() => {
  const CATEGORY = "Fine-tuning";
  const NEW = "sloth-nb:new-notebook";
  const COURSE = "sloth-nb:classroom";
  const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16">
    <g class="jp-icon3" fill="#616161" fill-rule="evenodd">
      <path d="M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm0 2a8 8 0 1 1 0 16 8 8 0 0 1 0-16z"/>
      <ellipse cx="8.3" cy="11" rx="2.7" ry="1.5" transform="rotate(-28 8.3 11)"/>
      <ellipse cx="15.7" cy="11" rx="2.7" ry="1.5" transform="rotate(28 15.7 11)"/>
      <ellipse cx="12" cy="14" rx="1.5" ry="1"/>
      <path d="M8.2 15.8c.9 1.3 2.3 2 3.8 2s2.9-.7 3.8-2l-1-.6c-.7 1-1.7 1.4-2.8 1.4s-2.1-.4-2.8-1.4z"/>
    </g></svg>`;

  let scope;
  const shared = async (name) => {
    const versions = scope[name];
    if (!versions) throw new Error(`JupyterLab shares no ${name}`);
    return (await Object.values(versions)[0].get())();
  };

  /** Asks the server's part of sloth_nb; what it refuses becomes an Error with its sentence. */
  const asker = (services, settings) => async (path, body) => {
    const { ServerConnection } = services;
    const request = body ? { method: "POST", body: JSON.stringify(body) } : {};
    const response = await ServerConnection.makeRequest(`${settings.baseUrl}sloth-nb/${path}`, request, settings);
    if (response.status === 404) {
      throw new Error(
        "The server's part of sloth_nb is not running. See `jupyter server extension list`, or write a notebook with " +
          "%load_ext sloth_nb and %sloth notebook."
      );
    }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message || `The server answered with ${response.status}.`);
    return answer;
  };

  let ids = 0;

  /** A labelled <select>; groups: [[title, [[value, text], …]], …]. */
  const choice = (label, groups, chosen) => {
    const row = document.createElement("div");
    row.style.marginBottom = "10px";
    const name = document.createElement("label");
    const select = document.createElement("select");
    select.id = name.htmlFor = `sloth-nb-choice-${ids++}`;
    name.textContent = label;
    select.className = "jp-mod-styled";
    select.style.cssText = "display:block;width:100%;margin-top:4px";
    row.append(name, select);
    const fill = (all, wanted) => {
      select.replaceChildren();
      for (const [title, options] of all) {
        let parent = select;
        if (title) {
          parent = document.createElement("optgroup");
          parent.label = title;
          select.append(parent);
        }
        for (const [value, text] of options) parent.append(new Option(text, value, false, value === wanted));
      }
    };
    fill(groups, chosen);
    return { row, select, fill };
  };

  /** The dialog's body: model, task and place; the tasks are those that the chosen model can do. */
  const form = (Widget, choices, args) => {
    const families = [...new Set(choices.models.map((model) => model.family))];
    const groups = families.map((family) => [
      family,
      choices.models.filter((model) => model.family === family).map((model) => [model.name, model.name]),
    ]);
    const model = choice("Model", groups, args.model || choices.models[0].name);
    const task = choice("What to do", [], "");
    const place = choice("Where it will run", [["", choices.platforms.map((p) => [p.name, p.title])]], args.platform);
    const able = () => choices.models.find((one) => one.name === model.select.value)?.tasks ?? [];
    const refill = () =>
      task.fill([["", choices.tasks.filter((t) => able().includes(t.name)).map((t) => [t.name, t.title])]],
        task.select.value || args.task);
    model.select.addEventListener("change", refill);
    refill();
    const node = document.createElement("div");
    node.style.minWidth = "360px";
    node.append(model.row, task.row, place.row);
    const body = new Widget({ node });
    body.getValue = () => ({ model: model.select.value, task: task.select.value, platform: place.select.value });
    return body;
  };

  const activate = async (app, launcher, palette, browser) => {
    const [apputils, services, lumino, components] = await Promise.all(
      ["@jupyterlab/apputils", "@jupyterlab/services", "@lumino/widgets", "@jupyterlab/ui-components"].map(shared)
    );
    const ask = asker(services, app.serviceManager.serverSettings);
    const icon = new components.LabIcon({ name: "sloth-nb:sloth", svgstr: ICON });
    const folder = (args) => args.cwd ?? browser?.model?.path ?? "";
    const told = (execute) => async (args) => {
      try {
        return await execute(args);
      } catch (error) {
        await apputils.showErrorMessage("sloth_nb", error.message || String(error));
      }
    };
    const open = (answer) => app.commands.execute("docmanager:open", { path: answer.path });

    app.commands.addCommand(NEW, {
      label: (args) => (args.isPalette ? "New fine-tuning notebook…" : "New fine-tuning notebook"),
      caption: "Choose a model and a task; the notebook is written into this folder",
      icon: (args) => (args.isPalette ? undefined : icon),
      execute: told(async (args) => {
        let wanted = { model: args.model, task: args.task, platform: args.platform };
        if (!wanted.model || !wanted.task) {
          const choices = await ask("choices");
          const answer = await apputils.showDialog({
            title: "New fine-tuning notebook",
            body: form(lumino.Widget, choices, { ...choices.usual, ...JSON.parse(JSON.stringify(wanted)) }),
            buttons: [apputils.Dialog.cancelButton(), apputils.Dialog.okButton({ label: "Create" })],
          });
          if (!answer.button.accept) return;
          wanted = answer.value;
        }
        return open(await ask("notebook", { ...wanted, folder: folder(args) }));
      }),
    });
    app.commands.addCommand(COURSE, {
      label: (args) => (args.isPalette ? "Open the fine-tuning classroom" : "Classroom"),
      caption: "Eight lessons on how language models are made yours; they are put into this folder",
      icon: (args) => (args.isPalette ? undefined : icon),
      execute: told(async (args) => open(await ask("classroom", { folder: folder(args) }))),
    });
    for (const [rank, command] of [NEW, COURSE].entries()) {
      launcher?.add({ command, category: CATEGORY, rank });
      palette?.addItem({ command, category: CATEGORY, args: { isPalette: true } });
    }
  };

  /** Whatever goes wrong in here is told to the console, and JupyterLab goes on without it. */
  const guarded = async (...all) => {
    try {
      await activate(...all);
    } catch (error) {
      console.error("sloth_nb's extension could not start:", error);
    }
  };

  const extension = async () => {
    const tokens = [];
    for (const [name, token] of [
      ["@jupyterlab/launcher", "ILauncher"],
      ["@jupyterlab/apputils", "ICommandPalette"],
      ["@jupyterlab/filebrowser", "IDefaultFileBrowser"],
    ]) {
      tokens.push(await shared(name).then((module) => module[token]));
    }
    return {
      __esModule: true,
      default: {
        id: "sloth-nb:plugin",
        description: "Notebooks for fine-tuning and the classroom, from the launcher and the palette.",
        autoStart: true,
        optional: tokens,
        activate: guarded,
      },
    };
  };

  return {
    init: (given) => {
      scope = given;
    },
    get: async () => {
      const module = await extension();
      return () => module;
    },
  };
})();
