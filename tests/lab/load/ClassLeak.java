// Loads one large class again and again, each time with a class loader of its own, as servers do for each deployment or
// script. With KEEP=1 it keeps the loaders, and the class space fills; else they are unloaded.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;

class ClassLeak {
    static final List<Object> deployed = new ArrayList<>();

    static class Deployment extends ClassLoader {
        Class<?> load(byte[] code) {
            Class<?> page = defineClass(null, code, 0, code.length);
            resolveClass(page);
            return page;
        }
    }

    /** What is deployed. */
    static class Page {
        // METHODS
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        double rate = Double.parseDouble(System.getenv("RATE"));
        boolean keep = "1".equals(System.getenv("KEEP"));
        byte[] code = ClassLeak.class.getResourceAsStream("ClassLeak$Page.class").readAllBytes();
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 64);
        server.createContext("/health", exchange -> {
            exchange.sendResponseHeaders(200, 2);
            exchange.getResponseBody().write("ok".getBytes());
            exchange.close();
        });
        server.start();
        System.out.println("listening");
        System.in.read();
        long began = System.nanoTime();
        for (long made = 0; ; made++) {
            while (made > (System.nanoTime() - began) / 1e9 * rate) Thread.sleep(5);
            Class<?> page = new Deployment().load(code);
            if (keep) deployed.add(page);
        }
    }
}
