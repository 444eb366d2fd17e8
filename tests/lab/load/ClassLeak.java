// Makes a class loader with one large generated class at a steady rate, as frameworks do for each deployment or script.
// With KEEP=1 it keeps the loaders, and the class space fills; else they are unloaded.
import com.sun.net.httpserver.HttpServer;
import java.lang.reflect.Proxy;
import java.net.InetSocketAddress;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.ArrayList;
import java.util.List;

class ClassLeak {
    static final List<Object> deployed = new ArrayList<>();

    /** A proxy of an interface with some 170 methods. */
    static Object generateClass() {
        ClassLoader loader = new URLClassLoader(new URL[0], ClassLeak.class.getClassLoader());
        Class<?>[] interfaces = {java.sql.DatabaseMetaData.class};
        return Proxy.newProxyInstance(loader, interfaces, (proxy, method, args) -> null);
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        double rate = Double.parseDouble(System.getenv("RATE"));
        boolean keep = "1".equals(System.getenv("KEEP"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 64);
        server.createContext("/health", exchange -> {
            exchange.sendResponseHeaders(200, 2);
            exchange.getResponseBody().write("ok".getBytes());
            exchange.close();
        });
        server.start();
        Object first = generateClass();
        System.out.println("listening");
        System.in.read();
        long began = System.nanoTime();
        for (long made = 0; ; made++) {
            while (made > (System.nanoTime() - began) / 1e9 * rate) Thread.sleep(5);
            Object object = generateClass();
            if (keep) deployed.add(object);
        }
    }
}
